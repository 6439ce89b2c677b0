/** "Did you mean": the known word that a mistyped one is closest to. */

/** As far apart as two words may be for one to be a typing error of the other, as a share of the longer. */
const DISTANCE_SHARE_MAX = 0.4;

/** The closest of the candidates, the first of several; undefined when none is close. */
export function similar(word: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    const far = distance(word, candidate);
    if (far >= least || far > DISTANCE_SHARE_MAX * Math.max(word.length, candidate.length)) continue;
    best = candidate;
    least = far;
  }
  return best;
}

/** Damerau-Levenshtein (optimal string alignment): a swap of two neighbours is one error, not two. */
function distance(one: string, other: string): number {
  const rows: number[][] = [Array.from({ length: other.length + 1 }, (_, column) => column)];
  const at = (row: number, column: number): number => rows[row]?.[column] ?? 0;
  for (let row = 1; row <= one.length; row += 1) {
    const current = [row];
    rows.push(current);
    for (let column = 1; column <= other.length; column += 1) {
      const same = one[row - 1] === other[column - 1] ? 0 : 1;
      let cost = Math.min(at(row - 1, column) + 1, at(row, column - 1) + 1, at(row - 1, column - 1) + same);
      const swapped = one[row - 1] === other[column - 2] && one[row - 2] === other[column - 1];
      if (row > 1 && column > 1 && swapped) cost = Math.min(cost, at(row - 2, column - 2) + 1);
      current.push(cost);
    }
  }
  return at(one.length, other.length);
}
