/**
 * One declaration of a fixed-width, little-endian struct gives its offsets, a decoder, an encoder, a C header with
 * static asserts, and a table for the documentation.
 *
 * Invariants of every struct declared here:
 * - each field lies at a multiple of its own width, and there is no padding between fields (declare `reserved`);
 * - the size is a multiple of the widest field;
 * - fields named `reserved…` are written as zero, and decoding reports anything else as damage.
 *
 * Hot paths read single fields with `view.getUint32(base + S.at.field, true)`; everything else uses decode/encode.
 */
import { CorruptionError, InvariantError, invariant } from "../base/errors.ts";

type Scalar = "u8" | "u16" | "u32" | "i32" | "u64" | "i64" | "f64";

const WIDTH: Record<Scalar, number> = { u8: 1, u16: 2, u32: 4, i32: 4, u64: 8, i64: 8, f64: 8 };
const C_TYPE: Record<Scalar, string> = {
  u8: "uint8_t",
  u16: "uint16_t",
  u32: "uint32_t",
  i32: "int32_t",
  u64: "uint64_t",
  i64: "int64_t",
  f64: "double",
};

export interface Field<T> {
  readonly scalar: Scalar;
  /** How the value appears in TypeScript: a safe integer, a bigint, raw bytes, or text in NUL-padded bytes. */
  readonly as: "number" | "bigint" | "bytes" | "text";
  readonly count: number;
  readonly doc: string;
  readonly _value?: T;
}

const field = <T>(scalar: Scalar, as: Field<T>["as"], count: number, doc: string): Field<T> => ({
  scalar,
  as,
  count,
  doc,
});

export const u8 = (doc: string): Field<number> => field("u8", "number", 1, doc);
export const u16 = (doc: string): Field<number> => field("u16", "number", 1, doc);
export const u32 = (doc: string): Field<number> => field("u32", "number", 1, doc);
export const i32 = (doc: string): Field<number> => field("i32", "number", 1, doc);
/** An unsigned 64-bit field whose value never exceeds 2^53 - 1 (block numbers, ids); more is reported as damage. */
export const u64 = (doc: string): Field<number> => field("u64", "number", 1, doc);
/** An unsigned 64-bit field that uses its whole range (file offsets and sizes up to 2^63 - 1). */
export const big64 = (doc: string): Field<bigint> => field("u64", "bigint", 1, doc);
export const i64 = (doc: string): Field<bigint> => field("i64", "bigint", 1, doc);
export const bytes = (count: number, doc: string): Field<Uint8Array> => field("u8", "bytes", count, doc);
/** UTF-8 text, padded with NUL bytes; always NUL-terminated when shorter than the field. */
export const text = (count: number, doc: string): Field<string> => field("u8", "text", count, doc);

type Fields = Record<string, Field<unknown>>;
export type ValueOf<F extends Fields> = { -readonly [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export interface StructField {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
  readonly field: Field<unknown>;
}

export interface Struct<F extends Fields> {
  readonly name: string;
  readonly doc: string;
  /** Bytes. */
  readonly size: number;
  /** Byte offset of each field. */
  readonly at: { readonly [K in keyof F]: number };
  readonly fields: readonly StructField[];
  /** Decode at byte offset `at`; the caller has checked that `size` bytes are there. */
  decode(view: DataView, at: number): ValueOf<F>;
  /** Encode at byte offset `at`; fields left out are written as zero. */
  encode(view: DataView, at: number, value: Partial<ValueOf<F>>): void;
}

export type StructValue<S> = S extends Struct<infer F> ? ValueOf<F> : never;

const TWO_32 = 0x1_0000_0000;

/** Read an unsigned 64-bit value as a number; NaN if it does not fit into 53 bits. */
export function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at + 4, true);
  return high < 0x20_0000 ? high * TWO_32 + view.getUint32(at, true) : Number.NaN;
}

export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % TWO_32, true);
  view.setUint32(at + 4, Math.floor(value / TWO_32), true);
}

const utf8 = new TextEncoder();
/** Fatal: what it replaced would be longer when it is written again. */
const utf8Decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

// ---- what the compiled functions call for fields that are more than a number

const ofField = (structName: string, name: string): string => `${structName}.${name}`;

function readU64(view: DataView, at: number, structName: string, name: string): number {
  const value = getU64(view, at);
  if (Number.isNaN(value)) {
    const found = `${view.getBigUint64(at, true)}`;
    throw new CorruptionError(ofField(structName, name), "at most 2^53 - 1", found);
  }
  return value;
}

const bytesAt = (view: DataView, at: number, count: number): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset + at, count);

const readBytes = (view: DataView, at: number, count: number): Uint8Array => bytesAt(view, at, count).slice();

function readText(view: DataView, at: number, count: number, structName: string, name: string): string {
  const raw = bytesAt(view, at, count);
  const end = raw.indexOf(0);
  try {
    return utf8Decoder.decode(end < 0 ? raw : raw.subarray(0, end));
  } catch {
    throw new CorruptionError(ofField(structName, name), "UTF-8", "other bytes");
  }
}

function zeroNumber<T extends number | bigint>(value: T, structName: string, name: string): T {
  if (Number(value) !== 0) throw new CorruptionError(ofField(structName, name), "zero", `${value}`);
  return value;
}

function zeroBytes(raw: Uint8Array, structName: string, name: string): Uint8Array {
  if (raw.some((byte) => byte !== 0)) {
    throw new CorruptionError(ofField(structName, name), "zero", "other bytes");
  }
  return raw;
}

function writeBytes(
  view: DataView,
  at: number,
  count: number,
  value: Uint8Array | undefined,
  structName: string,
  name: string,
): void {
  const target = bytesAt(view, at, count);
  target.fill(0);
  if (value === undefined) return;
  if (value.length > count) {
    throw new InvariantError(`${ofField(structName, name)}: ${value.length} bytes into ${count}`);
  }
  target.set(value);
}

const writeText = (
  view: DataView,
  at: number,
  count: number,
  value: string | undefined,
  structName: string,
  name: string,
): void =>
  writeBytes(view, at, count, value === undefined ? undefined : utf8.encode(value), structName, name);

const HELPERS = { readU64, readBytes, readText, zeroNumber, zeroBytes, writeBytes, writeText, setU64 };

const ACCESSOR: Record<Scalar, string> = {
  u8: "Uint8",
  u16: "Uint16",
  u32: "Uint32",
  i32: "Int32",
  u64: "BigUint64",
  i64: "BigInt64",
  f64: "Float64",
};

/** Expressions over `view` and `at` (and `value`) that read and write one field. */
function expressions({ name, offset, field }: StructField): { read: string; write: string } {
  const { scalar, as, count } = field;
  const place = `view, at + ${offset}`;
  const label = `structName, ${JSON.stringify(name)}`;
  const given = `value[${JSON.stringify(name)}]`;
  const little = scalar === "u8" ? "" : ", true";
  const isReserved = name.startsWith("reserved");
  if (as === "text") {
    return {
      read: `readText(${place}, ${count}, ${label})`,
      write: `writeText(${place}, ${count}, ${given}, ${label})`,
    };
  }
  if (as === "bytes") {
    const read = `readBytes(${place}, ${count})`;
    return {
      read: isReserved ? `zeroBytes(${read}, ${label})` : read,
      write: `writeBytes(${place}, ${count}, ${given}, ${label})`,
    };
  }
  const isWide = scalar === "u64" && as === "number";
  const read = isWide
    ? `readU64(${place}, ${label})`
    : `view.get${ACCESSOR[scalar]}(at + ${offset}${little})`;
  const nothing = as === "bigint" ? "0n" : "0";
  return {
    read: isReserved ? `zeroNumber(${read}, ${label})` : read,
    write: isWide
      ? `setU64(${place}, ${given} ?? 0)`
      : `view.set${ACCESSOR[scalar]}(at + ${offset}, ${given} ?? ${nothing}${little})`,
  };
}

/**
 * Functions for one struct, made of its declaration when it is declared: one that goes through the fields each time takes
 * some microseconds, as long as all the rest of a request. Nothing goes into their text but numbers and names from declarations.
 */
function compile<F extends Fields>(
  structName: string,
  fields: readonly StructField[],
): Pick<Struct<F>, "decode" | "encode"> {
  const parts = fields.map((part) => ({ name: part.name, ...expressions(part) }));
  const make = new Function(
    "structName",
    // biome-ignore lint/plugin: the helpers of this file
    ...Object.keys(HELPERS),
    `"use strict";
return {
  decode: (view, at) => ({${parts.map(({ name, read }) => `${JSON.stringify(name)}: ${read}`).join(", ")}}),
  encode: (view, at, value) => {${parts.map(({ write }) => `${write};`).join(" ")}},
};`,
  );
  // biome-ignore lint/plugin: the helpers of this file
  return make(structName, ...Object.values(HELPERS));
}

export function struct<F extends Fields>(
  name: string,
  doc: string,
  declaration: F,
  expectedSize: number,
): Struct<F> {
  const fields: StructField[] = [];
  const at: Record<string, number> = {};
  let offset = 0;
  let widest = 1;
  for (const [fieldName, declared] of Object.entries(declaration)) {
    const width = WIDTH[declared.scalar];
    const size = width * declared.count;
    invariant(offset % width === 0, () => `${name}.${fieldName} at ${offset} is not aligned to ${width}`);
    at[fieldName] = offset;
    fields.push({ name: fieldName, offset, size, field: declared });
    offset += size;
    widest = Math.max(widest, width);
  }
  invariant(offset % widest === 0, () => `${name}: size ${offset} is not a multiple of ${widest}`);
  invariant(offset === expectedSize, () => `${name}: size ${offset}, declared as ${expectedSize}`);

  const { decode, encode } = compile<F>(name, fields);
  return {
    name,
    doc,
    size: offset,
    at: at as { readonly [K in keyof F]: number },
    fields,
    decode,
    encode,
  };
}

/** The struct as C11, with its size and every offset asserted. Member names become snake_case. */
export function toC(declared: Struct<Fields>): string {
  const lines = [`/* ${declared.doc} */`, `struct ${declared.name} {`];
  for (const part of declared.fields) {
    const array = part.field.count > 1 || part.field.as === "bytes" ? `[${part.field.count}]` : "";
    lines.push(`  ${C_TYPE[part.field.scalar]} ${snake(part.name)}${array}; /* ${part.field.doc} */`);
  }
  lines.push("};");
  lines.push(
    `_Static_assert(sizeof(struct ${declared.name}) == ${declared.size}, "${declared.name}: size");`,
  );
  for (const part of declared.fields) {
    lines.push(
      `_Static_assert(offsetof(struct ${declared.name}, ${snake(part.name)}) == ${part.offset}, "${declared.name}.${snake(part.name)}");`,
    );
  }
  return lines.join("\n");
}

/** The struct as a Markdown table: offset, size, name, meaning. */
export function toMarkdown(declared: Struct<Fields>): string {
  const rows = declared.fields.map(
    (part) => `| ${part.offset} | ${part.size} | \`${snake(part.name)}\` | ${part.field.doc} |`,
  );
  return [`| offset | size | field | meaning |`, "| ---: | ---: | --- | --- |", ...rows].join("\n");
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** A DataView over the whole of a byte array. */
export function viewOf(data: Uint8Array): DataView {
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}
