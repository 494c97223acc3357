// Drives openai-node through the gateway: one JSON line per case.
import OpenAI from "openai";
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";
import { kept } from "./kept.mjs";

const [baseURL, ...cases] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-test" });
const ask = (model, more = {}) => ({ model, messages: [{ role: "user", content: "Say something." }], max_tokens: 12, ...more });

const weather = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];

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
  limited: () => again("limited"),
  spent: () => again("spent"),
  cut: () => stream(ask("cut")),
  wait: () => stream(ask("wait")),
  leave: () => stream(ask("sim", { max_tokens: 4000 }), { headers: { "X-Engine-Output-Tokens": "4000" } }, 3),
};

// tool asks for a call of a tool in one piece.
async function tool(model, more = {}) {
  const r = await client.chat.completions.create(ask(model, { tools: weather, ...more }));
  const m = r.choices[0].message;
  const call = m.tool_calls[0].function;
  return {
    tool: call.name, arguments: call.arguments, reasoning: m.reasoning_content, unknown: r.vendor_answer,
    finish: r.choices[0].finish_reason, usage: r.usage.completion_tokens,
  };
}

// again asks twice, and says what becomes of the second.
async function again(model) {
  await client.chat.completions.create(ask(model));
  return failing(() => client.chat.completions.create(ask(model)));
}

async function failing(call) {
  try {
    await call();
    return { status: 200 };
  } catch (err) {
    return { status: err.status, code: err.code, message: err.message, name: err.constructor.name };
  }
}

// turn asks once for an answer that the cache keeps, and says what came of it.
async function turn(kind, question) {
  const options = kind.startsWith("only") ? { headers: { "Cache-Control": "only-if-cached" } } : undefined;
  const body = ask("kept", { messages: [{ role: "user", content: question }], temperature: 0, tools: weather });
  const cache = (response) => response.headers.get("x-spillway-cache");
  try {
    if (kind === "embed") {
      const { data, response } = await client.embeddings.create({ model: "kept", input: question }).withResponse();
      return { cache: cache(response), vector: data.data[0].embedding, usage: data.usage.total_tokens };
    }
    if (kind === "one" || kind === "only") {
      const { data, response } = await client.chat.completions.create(body, options).withResponse();
      return { cache: cache(response), answer: data, reasoning: data.choices[0].message.reasoning_content, ...view(data) };
    }
    if (kind === "usage") body.stream_options = { include_usage: true };
    const { data, response } = await client.chat.completions.create({ ...body, stream: true }, options).withResponse();
    const chunks = [];
    const whole = await ChatCompletionStream.fromReadableStream(data.toReadableStream()).on("chunk", (c) => chunks.push(structuredClone(c))).finalChatCompletion();
    const reasoning = chunks.map((c) => c.choices[0]?.delta.reasoning_content ?? "").join("");
    return { cache: cache(response), chunks, ...view(whole), reasoning };
  } catch (err) {
    if (err.status === undefined) throw err;
    return { status: err.status, code: err.code };
  }
}

// view is what applications read of an answer.
function view(answer) {
  const { message, finish_reason } = answer.choices[0];
  return {
    content: message.content ?? "", finish: finish_reason, usage: answer.usage?.total_tokens, unknown: answer.vendor_answer,
    tools: message.tool_calls?.map((c) => ({ id: c.id, name: c.function.name, arguments: JSON.parse(c.function.arguments) })),
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
