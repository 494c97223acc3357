// Drives the Anthropic SDK through the gateway: one JSON line per case.
import Anthropic from "@anthropic-ai/sdk";

const [baseURL, ...cases] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey: "sk-test" });
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: "Say something." }], max_tokens: 12, ...more });

// stream reads a stream to its end and says what came, and whether it was raised.
async function stream(body, options, leaveAfter = Infinity) {
  const out = { chunks: 0, content: "", finish: null, usage: null, raised: null };
  try {
    const s = await client.messages.create({ ...body, stream: true }, options);
    for await (const event of s) {
      out.chunks++;
      out.content += event.delta?.text ?? "";
      out.finish = event.delta?.stop_reason ?? out.finish;
      out.usage = event.usage?.output_tokens ?? out.usage;
      if (out.chunks >= leaveAfter) {
        s.controller.abort();
        break;
      }
    }
  } catch (err) {
    out.raised = { name: err.constructor.name, message: err.message, code: err.error?.error?.type ?? null };
  }
  return out;
}

const run = {
  async chat() {
    const r = await client.messages.create(ask("sim"));
    return { content: r.content[0].text, finish: r.stop_reason, usage: r.usage.output_tokens };
  },
  stream: () => stream(ask("sim")),
  async extra() {
    const tools = [{ name: "weather", input_schema: { type: "object", properties: {} } }];
    const r = await client.messages.create(ask("tools", { tools, vendor_field: { deep: [1, 2.50, "x"] } }));
    return { tool: r.content[0].name, arguments: JSON.stringify(r.content[0].input), unknown: r.vendor_answer };
  },
  unknown: () => failing(() => client.messages.create(ask("nobody"))),
  bad: () => failing(() => client.messages.create(ask("bad"))),
  busy: () => failing(() => client.messages.create(ask("busy"))),
  cut: () => stream(ask("cut")),
  wait: () => stream(ask("wait")),
  leave: () => stream(ask("sim", { max_tokens: 4000 }), { headers: { "X-Engine-Output-Tokens": "4000" } }, 3),
};

async function failing(call) {
  try {
    await call();
    return { status: 200 };
  } catch (err) {
    return { status: err.status, code: err.error?.error?.type, message: err.message, name: err.constructor.name };
  }
}

for (const name of cases) {
  let out;
  try {
    out = await run[name]();
  } catch (err) {
    out = { failure: String(err.stack ?? err) };
  }
  console.log(JSON.stringify({ case: name, ...out }));
}
