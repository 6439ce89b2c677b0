/** The C side of the wire, from the exports of src/lease/wire.ts and toC of src/layout/struct.ts. */
export function wireHeader(
  wire: typeof import("../src/lease/wire.ts"),
  toC: typeof import("../src/layout/struct.ts").toC,
): string;
