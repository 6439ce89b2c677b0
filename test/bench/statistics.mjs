/** Medians and spread. All samples of one call belong to one workload. */

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function summary(values) {
  return { median: median(values), least: Math.min(...values), most: Math.max(...values), values };
}

/** Ratios are formed within a round, since what disturbs the machine disturbs neighbours in time alike. */
export function ratios(numerators, denominators) {
  const pairs = [];
  numerators.forEach((value, round) => {
    const other = denominators[round];
    if (value !== undefined && other !== undefined) pairs.push(value / other);
  });
  return pairs.length > 0 ? summary(pairs) : undefined;
}
