// Drives the Anthropic SDK through the gateway: one JSON line per case.
import Anthropic from "@anthropic-ai/sdk";
import { kept } from "./kept.mjs";

const [baseURL, ...cases] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey: "sk-test" });
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: "Say something." }], max_tokens: 12, ...more });

const weather = [{ name: "weather", input_schema: { type: "object", properties: {} } }];

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
    const r = await client.messages.create(ask("tools", { tools: weather, vendor_field: { deep: [1, 2.50, "x"] } }));
    return { tool: r.content[0].name, arguments: JSON.stringify(r.content[0].input), unknown: r.vendor_answer };
  },
  unknown: () => failing(() => client.messages.create(ask("nobody"))),
  bad: () => failing(() => client.messages.create(ask("bad"))),
  busy: () => failing(() => client.messages.create(ask("busy"))),
  limited: () => again("limited"),
  spent: () => again("spent"),
  cut: () => stream(ask("cut")),
  wait: () => stream(ask("wait")),
  leave: () => stream(ask("sim", { max_tokens: 4000 }), { headers: { "X-Engine-Output-Tokens": "4000" } }, 3),
};

// again asks twice, and says what becomes of the second.
async function again(model) {
  await client.messages.create(ask(model));
  return failing(() => client.messages.create(ask(model)));
}

async function failing(call) {
  try {
    await call();
    return { status: 200 };
  } catch (err) {
    return { status: err.status, code: err.error?.error?.type, message: err.message, name: err.constructor.name };
  }
}

// turn asks once for an answer that the cache keeps, and says what came of it.
async function turn(kind, question) {
  const options = kind.startsWith("only") ? { headers: { "Cache-Control": "only-if-cached" } } : undefined;
  const body = ask("kept", { messages: [{ role: "user", content: question }], temperature: 0, tools: weather });
  const cache = (response) => response.headers.get("x-spillway-cache");
  try {
    if (kind === "one" || kind === "only") {
      const { data, response } = await client.messages.create(body, options).withResponse();
      return { cache: cache(response), answer: data, ...view(data) };
    }
    const chunks = [];
    const s = client.messages.stream(body, options).on("streamEvent", (e) => chunks.push(structuredClone(e)));
    const whole = await s.finalMessage();
    return { cache: cache(s.response), chunks, ...view(whole) };
  } catch (err) {
    if (err.status === undefined) throw err;
    return { status: err.status, code: err.error?.error?.type };
  }
}

// view is what applications read of an answer.
function view(answer) {
  const joined = (member) => answer.content.map((b) => b[member] ?? "").join("");
  const tools = answer.content.filter((b) => b.type === "tool_use").map((b) => ({ id: b.id, name: b.name, arguments: b.input }));
  return {
    content: joined("text"), reasoning: joined("thinking"), finish: answer.stop_reason, unknown: answer.vendor_answer,
    usage: answer.usage.input_tokens + answer.usage.output_tokens, tools: tools.length ? tools : undefined,
  };
}

for (const name of cases) {
  let out;
  try {
    const [first, ...rest] = name.split(" ");
    out = first === "kept" ? await kept(turn, ...rest) : await run[name]();
  } catch (err) {
    out = { failure: String(err.stack ?? err) };
  }
  console.log(JSON.stringify({ case: name, ...out }));
}
