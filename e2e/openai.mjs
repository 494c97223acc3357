// Drives openai-node through the gateway: one JSON line per case.
import OpenAI from "openai";

const [baseURL, ...cases] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-test" });
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: "Say something." }], max_tokens: 12, ...more });

// stream reads a stream to its end and says what came, and whether it was raised.
async function stream(body, options, leaveAfter = Infinity) {
  const out = { chunks: 0, content: "", finish: null, usage: null, raised: null };
  try {
    const s = await client.chat.completions.create({ ...body, stream: true }, options);
    for await (const chunk of s) {
      out.chunks++;
      out.content += chunk.choices[0]?.delta?.content ?? "";
      out.finish = chunk.choices[0]?.finish_reason ?? out.finish;
      out.usage = chunk.usage?.completion_tokens ?? out.usage;
      if (out.chunks >= leaveAfter) {
        s.controller.abort();
        break;
      }
    }
  } catch (err) {
    out.raised = { name: err.constructor.name, message: err.message, code: err.code ?? null };
  }
  return out;
}

const run = {
  async models() {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    return { ids };
  },
  async chat() {
    const r = await client.chat.completions.create(ask("sim"));
    return { content: r.choices[0].message.content, finish: r.choices[0].finish_reason, usage: r.usage.completion_tokens };
  },
  stream: () => stream(ask("sim", { stream_options: { include_usage: true } })),
  extra: () => tool("tools", { vendor_field: { deep: [1, 2.50, "x"] } }),
  rebuilt: () => tool("chunks"),
  async embeddings() {
    const r = await client.embeddings.create({ model: "sim", input: "hello" });
    return { length: r.data[0].embedding.length };
  },
  unknown: () => failing(() => client.chat.completions.create(ask("nobody"))),
  bad: () => failing(() => client.chat.completions.create(ask("bad"))),
  busy: () => failing(() => client.chat.completions.create(ask("busy"))),
  cut: () => stream(ask("cut")),
  wait: () => stream(ask("wait")),
  leave: () => stream(ask("sim", { max_tokens: 4000 }), { headers: { "X-Engine-Output-Tokens": "4000" } }, 3),
};

// tool asks for a call of a tool in one piece.
async function tool(model, more = {}) {
  const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
  const r = await client.chat.completions.create(ask(model, { tools, ...more }));
  const m = r.choices[0].message;
  const call = m.tool_calls[0].function;
  return {
    tool: call.name, arguments: call.arguments, reasoning: m.reasoning_content, unknown: r.vendor_answer,
    finish: r.choices[0].finish_reason, usage: r.usage.completion_tokens,
  };
}

async function failing(call) {
  try {
    await call();
    return { status: 200 };
  } catch (err) {
    return { status: err.status, code: err.code, message: err.message, name: err.constructor.name };
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
