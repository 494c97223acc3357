import { setTimeout as sleep } from "node:timers/promises";

// kept takes the turns of a case in order, those joined by + at the same time, with a
// moment between, in which a generation ends whose client left at the terminal event.
// Its answer may still be on its way into the cache: what joins it is asked again.
export async function kept(turn, question, first, ...groups) {
  const take = (group) => Promise.all(group.split("+").map((kind) => turn(kind, question)));
  const out = { turns: await take(first), repeats: 0 };
  for (const group of groups) {
    await sleep(50);
    let turns = await take(group);
    for (; turns[0].cache === "coalesced" && out.repeats < 500; out.repeats++) {
      await sleep(10);
      turns = await take(group);
    }
    out.turns.push(...turns);
  }
  return out;
}
