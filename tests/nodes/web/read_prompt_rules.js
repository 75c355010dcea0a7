// What the browser makes of the cases in fixtures/prompt_rules.json, in the form in which they state it. `facts` are the dictionaries as
// the server lists them, `js` is the address of web/js.
async ({ rules, facts, js }) => {
  const { findMentions, writtenMention } = await import(`${js}/parts/mentions.mjs`);
  const { Dictionary, DictionarySet } = await import(`${js}/parts/dictionaries.mjs`);
  const { mergeDictionaries } = await import(`${js}/parts/merging.mjs`);
  const { resolveMention } = await import(`${js}/parts/picks.mjs`);
  const { PRESETS, assignStages, readClaims, readLines, readPresets, writtenStages } = await import(`${js}/stages/stages.mjs`);

  const sparse = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== ""));
  const unlessOne = (number) => (number === 1 ? undefined : Math.round(number * 1e6) / 1e6);
  const factors = (kinds) => kinds.map(({ text, factor }) => [text, factor]);
  const mentioned = ({ start, end, spectrum, strength, target, kinds, weight, stages, otherwise }) => {
    const own = spectrum === undefined ? { target, kinds: factors(kinds) } : { spectrum, strength: unlessOne(strength) };
    return sparse({ column: start + 1, length: end - start, ...own, stages, otherwise, weight: unlessOne(weight) });
  };
  const mentions = ({ text }, staged) => {
    const found = findMentions(text, staged);
    const wrong = found.find(({ fault }) => fault);
    return wrong ? { fault: { cause: wrong.fault, begins: wrong.start + 1 } } : { found: found.map(mentioned) };
  };
  const made = (name) => new Dictionary(name, name, facts[name]);
  const setOf = (called) => new DictionarySet(called.map(made));
  const lookup = ({ called, text }) => {
    const [mention] = findMentions(text);
    const { part, kinds, fault, nearest } = resolveMention(mention, setOf(called));
    if (fault) return { fault: { cause: fault, begins: mention.start + 1, nearest } };
    return { found: { dictionary: part.owner.called, part: part.name, kinds: kinds.map(({ kind, factor }) => [kind.number, factor]) } };
  };
  const written = ({ called, part: name, kinds, weight }) => {
    const set = setOf(called);
    const part = set.parts.find((one) => one.name === name);
    const chosen = kinds.map(([number, factor]) => ({ written: part.kinds.find((kind) => kind.number === number).written, factor }));
    return { text: writtenMention(set.target(part), chosen, weight) };
  };
  const merge = ({ first, second }) => {
    const { facts: joined, parts } = mergeDictionaries(made(first), made(second), "merged");
    const kinds = Object.fromEntries(parts.map((part) => [part.name, Object.fromEntries(part.kinds.map((kind) => [kind.number, kind.name]))]));
    const { part_names, background, id_base } = joined;
    return { part_names, background: part_names[background], id_base, kinds };
  };
  const counted = (stages) => [...new Set(stages)].sort((one, other) => one - other).map((stage) => stage + 1);
  const selection = ({ text, stages, presets = PRESETS }) => {
    const claims = readClaims(text, stages, presets);
    return claims ? { chosen: counted(claims.flatMap((claim) => claim.stages)) } : { fault: true };
  };
  const typed = ({ text, stages }) => {
    const found = readPresets(text, stages);
    return found ? { presets: { ...found } } : { fault: true };
  };
  const lines = ({ text, stages }) => {
    const found = readLines(text, stages);
    const numberOf = ({ start }) => text.slice(0, start).split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/).length;
    const wrong = found.find(({ claims, empty }) => !claims || empty);
    if (wrong) return { fault: { cause: wrong.empty ? "empty" : "unreadable", line: numberOf(wrong) } };
    const { owners, double } = assignStages(found.map(({ claims }) => claims), stages);
    if (double.length) return { fault: { cause: "double", stages_claimed: double.map((stage) => stage + 1) } };
    return { owners: owners.map((owner) => (owner < 0 ? null : found[owner].words)) };
  };
  return {
    mentions: rules.mentions.map((one) => mentions(one, false)),
    staged_mentions: rules.staged_mentions.map((one) => mentions(one, true)),
    lookups: rules.lookups.map(lookup),
    written: rules.written.map(written),
    merges: rules.merges.map(merge),
    selections: rules.selections.map(selection),
    written_selections: rules.written_selections.map(({ chosen }) => ({ text: writtenStages(chosen.map((stage) => stage - 1), 10, {}) })),
    presets: rules.presets.map(typed),
    lines: rules.lines.map(lines),
  };
};
