/**
 * Requests and replies on one line each, for debug traces. Driven by the opcode table; never throws, so that a trace of
 * malformed input can be taken.
 */
import { errnoName } from "../base/errno.ts";
import { type AnyStruct, Dirent, Direntplus, GetxattrOut } from "./kernel.ts";
import { opcodeName } from "./opcodes.ts";
import type { Request } from "./request.ts";

const SHOWN_BYTES = 16;

/** A name or a target in quotes, bytes outside printable ASCII as \xNN. */
export function printName(name: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control bytes are what is looked for.
  const escaped = name.replace(/[\x00-\x1f"\\\x7f-\xff]/g, (character) =>
    character === '"' || character === "\\"
      ? `\\${character}`
      : `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
  return `"${escaped}"`;
}

/** `> 12 LOOKUP node 1 uid 0 gid 0 pid 77 "name"`. */
export function printRequest(request: Request): string {
  const head = `> ${request.unique} ${opcodeName(request.opcode)} node ${request.nodeid} uid ${request.uid} gid ${request.gid} pid ${request.pid}`;
  const row = request.row;
  if (row === undefined || request.length === 0) return `${head} (${request.length} bytes)`;
  const parts = [head];
  const attempt = (make: () => string): void => {
    try {
      parts.push(make());
    } catch (error) {
      parts.push(`(${error instanceof Error ? error.message : String(error)})`);
    }
  };
  if (row.in !== null) {
    const declared = row.in;
    attempt(() => printValue(declared, request.body(declared)));
  }
  switch (row.trailing) {
    case "name":
    case "any name":
    case "xattr name":
      attempt(() => printName(request.name()));
      break;
    case "two names":
    case "name+target":
      attempt(() => printName(request.name()));
      attempt(() => printName(request.secondName()));
      break;
    case "xattr name+data":
      attempt(() => printName(request.name()));
      attempt(() => printBytes(request.data()));
      break;
    case "data":
      attempt(() => printBytes(request.data()));
      break;
    case "none":
      break;
  }
  return parts.filter((part) => part !== "").join(" ");
}

/**
 * `< 12 LOOKUP ENOENT`, or the fields of the reply. `error` is 0 or a positive errno; the payload lies in
 * payload[start, start + length).
 */
export function printReply(
  request: Pick<Request, "unique" | "opcode" | "row">,
  error: number,
  payload: Uint8Array,
  start: number,
  length: number,
): string {
  const head = `< ${request.unique} ${opcodeName(request.opcode)}`;
  if (error !== 0) return `${head} ${errnoName(error)}`;
  const bytes = Buffer.from(payload.buffer, payload.byteOffset + start, length);
  const row = request.row;
  if (row === undefined) return `${head} ${printBytes(bytes)}`;
  const parts = [head];
  let at = 0;
  for (const declared of [row.out, row.outSecond]) {
    if (declared === null) continue;
    if (at + declared.size > length) {
      parts.push(`(${length} bytes)`);
      return parts.join(" ");
    }
    parts.push(printStruct(declared, bytes, at));
    at += declared.size;
  }
  const rest = bytes.subarray(at);
  switch (row.outTrailing) {
    case "data":
      parts.push(printBytes(rest));
      break;
    case "data or size":
      // The same 8 bytes could be a value; the trace shows them both ways.
      parts.push(printBytes(rest));
      if (rest.length === GetxattrOut.size) parts.push(`or ${printStruct(GetxattrOut, rest, 0)}`);
      break;
    case "dirents":
      parts.push(printDirents(rest, 0));
      break;
    case "direntplus":
      parts.push(printDirents(rest, Direntplus.size - Dirent.size));
      break;
    case "none":
      if (rest.length > 0) parts.push(printBytes(rest));
      break;
  }
  if (parts.length === 1) parts.push("ok");
  return parts.join(" ");
}

function printDirents(bytes: Buffer, skip: number): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entries: string[] = [];
  for (let at = 0; at + skip + Dirent.size <= bytes.length; ) {
    const namelen = view.getUint32(at + skip + Dirent.at.namelen, true);
    const nameAt = at + skip + Dirent.size;
    if (namelen === 0 || nameAt + namelen > bytes.length) break;
    const off = view.getBigUint64(at + skip + Dirent.at.off, true);
    entries.push(`${printName(bytes.toString("latin1", nameAt, nameAt + namelen))}@${off}`);
    at += (skip + Dirent.size + namelen + 7) & ~7;
  }
  return `[${entries.join(" ")}]`;
}

function printStruct(declared: AnyStruct, bytes: Buffer, at: number): string {
  try {
    return printValue(
      declared,
      declared.decode(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), at),
    );
  } catch (error) {
    return `(${error instanceof Error ? error.message : String(error)})`;
  }
}

function printValue(declared: AnyStruct, value: Record<string, unknown>): string {
  const shown: string[] = [];
  for (const { name } of declared.fields) {
    if (/^(padding|unused|dummy|spare)|Padding$/.test(name)) continue;
    const found = value[name];
    if (found instanceof Uint8Array) continue;
    shown.push(`${name}=${printNumber(name, found as number | bigint)}`);
  }
  return shown.length === 0 ? "" : `{${shown.join(" ")}}`;
}

function printNumber(name: string, value: number | bigint): string {
  if (name === "mode" || name === "umask") return `0o${value.toString(8)}`;
  if (/(flags2?|mask)$|^(valid|cmd|arg|lockOwner|owner|events|revents)$/i.test(name))
    return `0x${value.toString(16)}`;
  return value.toString();
}

function printBytes(bytes: Buffer): string {
  const head = bytes.subarray(0, SHOWN_BYTES).toString("hex");
  return `<${bytes.length} bytes${head === "" ? "" : ` ${head}`}${bytes.length > SHOWN_BYTES ? "…" : ""}>`;
}
