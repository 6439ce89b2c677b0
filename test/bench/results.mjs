/** Samples become rows: per peer, per ratio, and what the goals ask for. */
import { median, summary } from "./statistics.mjs";

/**
 * A sample: { round, workload, peer, values: { key: number }, ratios?: { peer: { key: number } }, cpuMicros? }. There is
 * at most one for each round, workload and peer.
 */
export class Results {
  #samples;
  #workloads;
  #first;

  constructor(samples, workloads, first) {
    this.#samples = samples;
    this.#workloads = workloads;
    this.#first = first;
  }

  #of(peer, pick) {
    const byRound = new Map();
    for (const sample of this.#samples) {
      const value = sample.peer === peer ? pick(sample) : undefined;
      if (value !== undefined) byRound.set(sample.round, value);
    }
    return byRound;
  }

  /** Undefined if it was not measured. */
  values(peer, key) {
    const found = [...this.#of(peer, ({ values }) => values[key]).values()];
    return found.length > 0 ? summary(found) : undefined;
  }

  /**
   * Of one peer to another, formed within each round (or within the program that compares them), since what disturbs the
   * machine disturbs neighbours in time alike.
   */
  ratio(peer, other, key) {
    const upper = this.#of(peer, (sample) => sample.ratios?.[other]?.[key] ?? sample.values[key]);
    const formed = this.#of(peer, (sample) => sample.ratios?.[other]?.[key]);
    const lower = this.#of(other, ({ values }) => values[key]);
    const pairs = [];
    for (const [round, value] of upper) {
      if (formed.has(round)) pairs.push(formed.get(round));
      else if (lower.has(round)) pairs.push(value / lower.get(round));
    }
    return pairs.length > 0 ? summary(pairs) : undefined;
  }

  /** What `combine` makes of several figures of one peer, round by round. */
  combined(peer, keys, combine) {
    const found = keys.map((key) => this.#of(peer, ({ values }) => values[key]));
    const all = [];
    for (const round of found[0].keys()) {
      const values = found.map((byRound) => byRound.get(round));
      if (values.every((value) => value !== undefined)) all.push(combine(...values));
    }
    return all.length > 0 ? summary(all) : undefined;
  }

  rows(peers) {
    return this.#workloads.flatMap(({ group, rows }) =>
      rows.map((row) => {
        const byPeer = {};
        const ratioTo = {};
        for (const { name } of peers) {
          const values = this.values(name, row.key);
          if (values === undefined) continue;
          byPeer[name] = values;
          const ratio = name === this.#first ? undefined : this.ratio(this.#first, name, row.key);
          if (ratio !== undefined) ratioTo[name] = ratio;
        }
        return { group, better: "more", ...row, byPeer, ratioTo };
      }),
    );
  }

  cpuRows(peers) {
    return this.#workloads
      .map(({ name, group, title, rows }) => {
        const byPeer = {};
        const ratioTo = {};
        const ofPeer = (peer) =>
          this.#of(peer, (sample) => (sample.workload === name ? sample.cpuMicros : undefined));
        const first = ofPeer(this.#first);
        for (const { name: peer, pid } of peers) {
          const values = ofPeer(peer);
          if (pid === undefined || values.size === 0) continue;
          byPeer[peer] = summary([...values.values()]);
          const pairs = [...values].filter(([round]) => first.has(round));
          if (peer === this.#first || pairs.length === 0) continue;
          ratioTo[peer] = summary(pairs.map(([round, value]) => first.get(round) / value));
        }
        return { name, group, title: title || (rows.length === 1 ? rows[0].title : name), byPeer, ratioTo };
      })
      .filter(({ byPeer }) => Object.keys(byPeer).length > 0);
  }
}

/** Several slices of one round become one sample: the median of each figure, and of the CPU time. */
export function medianOf({ rows }, measured) {
  const values = {};
  for (const { key } of rows) {
    const found = measured.map((one) => one.values[key]).filter((value) => value !== undefined);
    if (found.length > 0) values[key] = median(found);
  }
  const cpu = measured.map((one) => one.cpuMicros).filter(Number.isFinite);
  return { values, cpuMicros: cpu.length > 0 ? median(cpu) : Number.NaN };
}

/** Rows with `curve` as curves: { name, x, series: [{ title, unit, values (summary or null) }] }. */
export function curvesOf(rows, peer) {
  const curves = new Map();
  for (const { curve, unit, byPeer } of rows) {
    if (curve === undefined || byPeer[peer] === undefined) continue;
    const { name, series, x } = curve;
    if (!curves.has(name)) curves.set(name, { name, xs: new Set(), series: new Map() });
    const found = curves.get(name);
    found.xs.add(x);
    if (!found.series.has(series)) found.series.set(series, { title: series, unit, points: new Map() });
    found.series.get(series).points.set(x, byPeer[peer]);
  }
  return [...curves.values()].map(({ name, xs, series }) => {
    const x = [...xs].sort((a, b) => a - b);
    const values = ({ points }) => x.map((at) => points.get(at) ?? null);
    return {
      name,
      x,
      series: [...series.values()].map((one) => ({ title: one.title, unit: one.unit, values: values(one) })),
    };
  });
}
