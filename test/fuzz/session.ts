/**
 * A session under fuzzing: sequences of requests, as strangers' system calls and ioctls (or a kernel that has gone mad) make
 * them, served from a small volume. No mount: the channel to the kernel is a substitute.
 *
 * What has to hold, whatever comes in:
 * - every request that wants an answer gets exactly one, an errno or a reply of the right form; at the latest when it is
 *   interrupted;
 * - nothing else is thrown, no invariant is violated, and a READ names bytes inside the region alone;
 * - the volume can be unmounted, and mounted again it is the same.
 */
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { InHeader, Opcode } from "../../src/fuse/kernel.ts";
import { FstrimRange, Fsxattr, LinuxIoctl } from "../../src/fuse/linux-ioctls.ts";
import { type OpRow, opRow, opRows } from "../../src/fuse/opcodes.ts";
import { printReply, printRequest } from "../../src/fuse/print.ts";
import { Request } from "../../src/fuse/request.ts";
import { type StructField, struct, u32, viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { Store } from "../../src/namespace/store.ts";
import { addon, type KernelChannel } from "../../src/region/addon.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Session } from "../../src/session/session.ts";
import { Volume } from "../../src/session/volume.ts";
import { difference, foreignBytes, Model } from "../namespace/model.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { makeSpecimen } from "../support/specimen.ts";
import { Finding, type Target } from "./fuzzer.ts";

/** Fields that are not given are zero, and what counts bytes counts them right. Numbers are decimal. */
export interface Call {
  readonly op: string;
  readonly node: number;
  readonly uid: number;
  readonly pid: number;
  readonly fields: Readonly<Record<string, string>>;
  readonly names: readonly string[];
  /** Hexadecimal; what follows names and fixed part. */
  readonly data: string;
  /** IOCTL: the name of one, and the fields of its struct; instead of data. */
  readonly ioctl: string;
  readonly wire: Readonly<Record<string, string>>;
  /** Bytes changed at the end of all, by place. */
  readonly bytes: readonly (readonly [at: number, value: number])[];
  /** The caller is gone when the answer comes. */
  readonly gone: boolean;
  /** Turns of the event loop before the next one. */
  readonly turns: number;
}

export interface SessionInput {
  readonly granularity: Granularity;
  /** Seconds; at 1 no break comes to its end. */
  readonly breakTime: number;
  readonly calls: readonly Call[];
}

const PLAIN: Call = {
  ...{ op: "GETATTR", node: 1, uid: 0, pid: process.pid, fields: {}, names: [], data: "" },
  ...{ ioctl: "", wire: {}, bytes: [], gone: false, turns: 1 },
};

const FLAGS = struct("flags", "What GETFLAGS and SETFLAGS carry.", { flags: u32("FS_*_FL") }, 4);
const LABEL = struct("label", "As numbers, which are mostly no text.", { label: u32("bytes") }, 4);

const WIRES = {
  REGION: wire.WireRegion,
  GRANT: wire.WireMap,
  EXTENTS: wire.WireMap,
  END: wire.WireLease,
  PREPARE: wire.WireRange,
  CONTROL: wire.WireControl,
  WATCH: wire.WireLease,
  STATUS: wire.WireStatus,
  OFFER: wire.WireClone,
  CLONE: wire.WireClone,
  DEFRAG: wire.WireRange,
  FITRIM: FstrimRange,
  GETFLAGS: FLAGS,
  SETFLAGS: FLAGS,
  FSGETXATTR: Fsxattr,
  FSSETXATTR: Fsxattr,
  GETVERSION: FLAGS,
  GETFSLABEL: LABEL,
  SETFSLABEL: LABEL,
} as const;
const COMMANDS = { ...wire.Ioctl, ...LinuxIoctl };

const NAMES = [
  ...["dir", "file", "twin", "moved", "link", "new", "a", "b", ".", "..", "", "a/b", "\xff\xfe"],
  ...["x".repeat(255), "x".repeat(256), "y".repeat(4095), "user.a", "user.b", "trusted.x", "user."],
  ...["security.capability", "system.posix_acl_access", "system.posix_acl_default", "system.other"],
];

const VALUES = [
  ...[0n, 1n, 2n, 3n, 4n, 5n, 7n, 8n, 9n, 10n, 16n, 100n, 511n, 512n, 4095n, 4096n, 4097n, 8192n, 10_000n],
  ...[65535n, 65536n, 65537n, 131072n, 1n << 20n, (1n << 20n) + 1n, 4n << 20n, 1n << 31n, (1n << 32n) - 1n],
  ...[1n << 32n, 1n << 44n, (1n << 51n) - 1n, 1n << 52n, (1n << 53n) - 1n, 1n << 53n, (1n << 63n) - 4096n],
  ...[(1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 4096n, (1n << 64n) - 1n, 999_999_999n, 1_000_000_000n],
];

/** Mode, open flags, SETATTR's valid bits and the like: any bits. */
const BITS = /flags|valid|mode|events|umask/i;

/** An access list of three entries, and one with a named user. */
const ACLS = [
  "02000000" + "01000600ffffffff" + "04000400ffffffff" + "20000400ffffffff",
  "02000000" +
    "01000700ffffffff" +
    "02000500e8030000" +
    "04000400ffffffff" +
    "10000700ffffffff" +
    "20000000ffffffff",
];

export class SessionTarget implements Target<SessionInput> {
  readonly name = "session";
  readonly #images: Readonly<Record<Granularity, Uint8Array>>;

  private constructor(images: Readonly<Record<Granularity, Uint8Array>>) {
    this.#images = images;
  }

  static async make(): Promise<SessionTarget> {
    const { image: cacheline } = await makeSpecimen("cacheline", true);
    const { image: page } = await makeSpecimen("page", true);
    return new SessionTarget({ cacheline, page });
  }

  seeds(): SessionInput[] {
    const init = call("INIT", {
      fields: { major: "7", minor: "40", flags: "4294967295", flags2: "4294967295" },
    });
    const look = [
      call("LOOKUP", { names: ["dir"] }),
      call("LOOKUP", { node: 2, names: ["file"] }),
      call("LOOKUP", { node: 2, names: ["twin"] }),
    ];
    const open = (node: number, flags = 2): Call => call("OPEN", { node, fields: { flags: `${flags}` } });
    const io = (op: string, fh: number, offset: number, size: number): Call =>
      call(op, { node: 3, fields: { fh: `${fh}`, offset: `${offset}`, size: `${size}` } });
    const ioctl = (name: string, fh: number, fields: Record<string, string>): Call =>
      call("IOCTL", { node: 3, ioctl: name, fields: { fh: `${fh}` }, wire: { version: "1", ...fields } });
    const files = [...look, open(3), open(5), open(3)];
    const sequences: Call[][] = [
      ...opRows.map(({ name }) => [
        ...files,
        call(name, { node: 3, fields: { fh: "1" }, names: ["new", "target"] }),
      ]),
      [...files, { ...io("WRITE", 1, 100, 0), data: "ab".repeat(5000) }, io("READ", 1, 0, 65536)],
      [call("OPENDIR", {}), io("READDIR", 1, 0, 4096), io("READDIRPLUS", 1, 0, 4096)],
      [...files, call("TMPFILE", { fields: { flags: "2", mode: "33152" }, names: ["/"] })],
      [
        call("CREATE", { fields: { flags: "2", mode: "33188" }, names: ["new"] }),
        call("UNLINK", { names: ["new"] }),
      ],
      [call("SYMLINK", { names: ["sym", "dir/file"] }), call("READLINK", { node: 7 })],
      [...look, call("RENAME2", { node: 2, fields: { newdir: "1", flags: "2" }, names: ["file", "moved"] })],
      [...look, call("LINK", { fields: { oldnodeid: "3" }, names: ["hard"] })],
      [...files, call("SETATTR", { node: 3, fields: { valid: "8", size: "5" } })],
      [
        ...files,
        call("FALLOCATE", { node: 3, fields: { fh: "1", offset: "4096", length: "8192", mode: "3" } }),
      ],
      [
        ...files,
        call("COPY_FILE_RANGE", { node: 3, fields: { fhIn: "1", fhOut: "2", offOut: "8192", len: "9000" } }),
      ],
      [...files, call("LSEEK", { node: 3, fields: { fh: "1", offset: "1", whence: "4" } })],
      ...ACLS.map((data) => [
        ...look,
        call("SETXATTR", { node: 3, names: ["system.posix_acl_access"], data }),
        call("GETXATTR", { node: 3, fields: { size: "200" }, names: ["system.posix_acl_access"] }),
        call("LISTXATTR", { node: 3, fields: { size: "4096" } }),
      ]),
      [
        ...files,
        ioctl("GRANT", 1, { kind: "2", offset: "0", length: "8192", flags: "4" }),
        ioctl("WATCH", 3, { leaseId: "1" }),
        call("POLL", { node: 3, fields: { fh: "3", kh: "9", flags: "1", events: "1" } }),
        ioctl("STATUS", 3, {}),
        ioctl("CONTROL", 1, { question: "2" }),
        { ...call("SETATTR", { node: 3, fields: { valid: "8", size: "5" } }), turns: 4 },
        ioctl("END", 1, { leaseId: "1" }),
        call("RELEASE", { node: 3, fields: { fh: "1" } }),
      ],
      [
        ...files,
        ioctl("GRANT", 1, { kind: "1", length: "4096" }),
        ioctl("EXTENTS", 2, { length: "1048576" }),
      ],
      [
        ...files,
        ioctl("SETFLAGS", 1, { flags: "64" }),
        ioctl("FITRIM", 1, { length: "8388608" }),
        ioctl("FSGETXATTR", 1, {}),
        call("UNLINK", { node: 2, names: ["file"] }),
      ],
      [
        ...files,
        ioctl("GRANT", 1, { kind: "2", offset: "0", length: "8192", flags: "4" }),
        { ...ioctl("SETFLAGS", 2, { flags: "16" }), turns: 4 },
        ioctl("END", 1, { leaseId: "1" }),
        ioctl("SETFSLABEL", 1, { label: "65" }),
      ],
      [...files, ioctl("PREPARE", 1, { length: "65536" }), ioctl("DEFRAG", 1, {})],
      [...files, ioctl("REGION", 1, {}), ioctl("OFFER", 1, {}), ioctl("CLONE", 2, {})],
      ...[1, 3, 4, 5].map((question) => [...files, ioctl("CONTROL", 1, { question: `${question}` })]),
    ];
    return sequences.map((calls, index) => ({
      granularity: index % 2 === 0 ? "cacheline" : "page",
      breakTime: index % 3 === 0 ? 0 : 1,
      calls: [init, ...calls],
    }));
  }

  *smaller(input: SessionInput): Iterable<SessionInput> {
    const { calls } = input;
    const half = Math.floor(calls.length / 2);
    if (calls.length > 3) {
      yield { ...input, calls: calls.slice(half) };
      yield { ...input, calls: calls.slice(0, half) };
    }
    for (let index = calls.length - 1; index >= 0; index -= 1)
      yield { ...input, calls: calls.filter((_, other) => other !== index) };
    for (const [index, one] of calls.entries()) {
      const simpler: Partial<Call>[] = [];
      if (one.bytes.length > 0) simpler.push({ bytes: [] });
      if (one.gone) simpler.push({ gone: false });
      if (one.data.length > 4) simpler.push({ data: one.data.slice(0, 2) });
      for (const key of Object.keys(one.fields)) simpler.push({ fields: without(one.fields, key) });
      for (const key of Object.keys(one.wire)) simpler.push({ wire: without(one.wire, key) });
      for (const change of simpler) yield { ...input, calls: calls.with(index, { ...one, ...change }) };
    }
  }

  mutate(input: SessionInput, random: () => number, other: () => SessionInput): SessionInput {
    const below = (limit: number): number => Math.floor(random() * limit);
    let calls = [...input.calls];
    for (let left = 1 + below(4); left > 0; left -= 1) {
      const at = below(calls.length);
      const one = calls[at] as Call;
      const how = random();
      if (how < 0.45) calls[at] = changed(one, random);
      else if (how < 0.55) calls.splice(at + 1, 0, changed(one, random));
      else if (how < 0.62 && calls.length > 2) calls.splice(at, 1);
      else if (how < 0.7) {
        const with_ = below(calls.length);
        [calls[at], calls[with_]] = [calls[with_] as Call, one];
      } else if (how < 0.85) {
        const donor = other().calls;
        const from = below(donor.length);
        calls.splice(at + 1, 0, ...donor.slice(from, from + 1 + below(5)));
      } else {
        const row = opRows[below(opRows.length)] as OpRow;
        const fresh = call(row.name, { names: ["new", "target"], fields: { fh: `${1 + below(4)}` } });
        calls.splice(at + 1, 0, changed(changed(fresh, random), random));
      }
      calls = calls.slice(0, 30);
    }
    return {
      granularity: random() < 0.05 ? (random() < 0.5 ? "page" : "cacheline") : input.granularity,
      breakTime: random() < 0.05 ? below(2) : input.breakTime,
      calls,
    };
  }

  async run(input: SessionInput): Promise<readonly string[]> {
    const region = MemoryRegion.fromImage(this.#images[input.granularity], {
      granularity: input.granularity,
    });
    const volume = await Volume.open(region, {
      ...{ readOnly: false, direct: "seal", breakTimeSeconds: input.breakTime },
      ...{ maxLeases: 4, maxLeasedBytes: 1 << 20, administratorUid: 0 },
    });
    // From here on it is one that clients could map.
    Object.assign(region.facts, { kind: "file" });
    const served = new Served(volume, Object.assign(region, { native: {} }));
    const words: string[] = [];
    try {
      for (const [index, one] of input.calls.entries()) {
        served.send(encode(one, BigInt(2 * index + 2)), one);
        for (let left = one.turns % 8; left > 0; left -= 1) await turn();
      }
      await served.settle();
      words.push(...served.words);
      checkVolume(volume.store);
    } finally {
      await served.close();
    }
    const before = Model.of(volume.store).withoutOrphans();
    await volume.close();
    const again = await Store.open(region, { readOnly: true });
    if (again.recovery.label !== "clean") throw new Finding(`after unmounting: ${again.recovery.label}`);
    checkVolume(again);
    const after = Model.of(again);
    const complaint = difference(after, before) ?? foreignBytes(after, [before]);
    if (complaint !== null) throw new Finding(`after unmounting: ${complaint}`);
    return words;
  }
}

const call = (op: string, rest: Partial<Call>): Call => ({ ...PLAIN, op, ...rest });

function without<T>(fields: Readonly<Record<string, T>>, key: string): Record<string, T> {
  const { [key]: _, ...rest } = fields;
  return rest;
}

function changed(one: Call, random: () => number): Call {
  const below = (limit: number): number => Math.floor(random() * limit);
  const row = opRows.find(({ name }) => name === one.op) as OpRow;
  const value = ({ name, size }: StructField): string => {
    const bits = size * 8;
    const how = random();
    if (/^(fh|fhIn|fhOut)$/.test(name) && how < 0.9) return `${below(7)}`;
    if (/^(nodeid|oldnodeid|newdir|ino)$/.test(name) && how < 0.9) return `${below(12)}`;
    if (/^(leaseId|token|question|kind)$/.test(name) && how < 0.9) return `${below(6)}`;
    if (name === "version" && how < 0.95) return "1";
    if (BITS.test(name) && how < 0.7)
      return `${(1n << BigInt(below(bits))) | (how < 0.3 ? 1n << BigInt(below(bits)) : 0n)}`;
    if (how < 0.3) return `${below(20)}`;
    if (how < 0.4) return `${below(64) * 4096}`;
    return `${BigInt.asUintN(bits, VALUES[below(VALUES.length)] as bigint)}`;
  };
  const pick = (fields: readonly StructField[]): StructField => fields[below(fields.length)] as StructField;
  const how = random();
  if (one.ioctl !== "" && how < 0.5) {
    const field = pick(WIRES[one.ioctl as keyof typeof WIRES].fields.filter(({ size }) => size <= 8));
    return { ...one, wire: { ...one.wire, [field.name]: value(field) } };
  }
  if (row.in !== null && how < 0.6) {
    const field = pick(row.in.fields.filter(({ size }) => size <= 8));
    return { ...one, fields: { ...one.fields, [field.name]: value(field) } };
  }
  if (how < 0.68) return { ...one, node: random() < 0.9 ? below(12) : Number.MAX_SAFE_INTEGER };
  if (how < 0.78) return { ...one, names: [0, 1].map(() => NAMES[below(NAMES.length)] as string) };
  if (how < 0.82) return { ...one, uid: [0, 1000, 65534][below(3)] as number };
  if (how < 0.84) return { ...one, pid: [0, 1, process.pid, 2 ** 31 - 1][below(4)] as number };
  if (how < 0.88) {
    const length = [0, 1, 44, 100, 4096, 5000, 65536, 70_000][below(8)] as number;
    const data = random() < 0.2 ? (ACLS[below(2)] as string) : "5a".repeat(length);
    return { ...one, data, bytes: random() < 0.5 ? [] : one.bytes };
  }
  if (how < 0.91) return { ...one, gone: !one.gone };
  if (how < 0.93) return { ...one, turns: below(8) };
  if (how < 0.96) {
    const names = Object.keys(WIRES);
    return call("IOCTL", {
      ...{ node: one.node, ioctl: names[below(names.length)] as string },
      ...{ fields: { fh: `${1 + below(4)}` }, wire: { version: "1", length: "8192", kind: `${below(3)}` } },
    });
  }
  return { ...one, bytes: [...one.bytes.slice(-3), [below(random() < 0.5 ? 40 : 200), below(256)]] };
}

function encoded(
  declared: { size: number; fields: readonly StructField[] },
  values: Readonly<Record<string, string>>,
): Buffer {
  const bytes = Buffer.alloc(declared.size);
  for (const { name, offset, size } of declared.fields) {
    const value = values[name];
    if (value === undefined) continue;
    let rest = BigInt.asUintN(64, BigInt(value));
    for (let byte = 0; byte < Math.min(size, 8); byte += 1) {
      bytes[offset + byte] = Number(rest & 0xffn);
      rest >>= 8n;
    }
  }
  return bytes;
}

function encode(one: Call, unique: bigint): Buffer {
  const row = opRows.find(({ name }) => name === one.op) as OpRow;
  const ioctl = one.ioctl in WIRES ? (one.ioctl as keyof typeof WIRES) : null;
  let data = Buffer.from(one.data, "hex");
  const fields = { ...one.fields };
  if (row.opcode === Opcode.IOCTL && ioctl !== null) {
    const cmd = COMMANDS[ioctl];
    const size = (cmd >>> 16) & 0x3fff;
    data = Buffer.alloc((cmd >>> 30) & 1 ? size : 0);
    if (data.length > 0) encoded(WIRES[ioctl], one.wire).copy(data);
    fields.cmd ??= `${cmd}`;
    fields.outSize ??= `${(cmd >>> 31) & 1 ? size : 0}`;
  }
  if (row.sizeField !== null) fields[row.sizeField] ??= `${data.length}`;
  const name = (index: number): Buffer => Buffer.from(`${one.names[index] ?? "name"}\0`, "latin1");
  const parts: Buffer[] = [];
  if (row.in !== null) parts.push(encoded(row.in, fields));
  if (row.trailing === "two names" || row.trailing === "name+target") parts.push(name(0), name(1));
  else if (/name/.test(row.trailing)) parts.push(name(0));
  if (/data/.test(row.trailing)) parts.push(data);
  const body = Buffer.concat(parts);
  const bytes = Buffer.concat([Buffer.alloc(InHeader.size), body]);
  InHeader.encode(viewOf(bytes), 0, {
    ...{ len: bytes.length, opcode: row.opcode, unique, nodeid: one.node },
    ...{ uid: one.uid, gid: one.uid, pid: one.pid },
  });
  // Not the id: the kernel's are its own.
  for (const [at, value] of one.bytes) if (at < 8 || at >= 16) if (at < bytes.length) bytes[at] = value;
  return bytes;
}

/** A session, its substitute of a channel, and what was answered. */
class Served {
  readonly words: string[] = [];
  readonly #session: Session;
  readonly #regionBytes: number;
  readonly #open = new Map<bigint, { row: OpRow | undefined; call: Call; line: string }>();
  #buffer: Uint8Array = new Uint8Array(0);
  #receive: (length: number) => void = () => {};
  #thrown: unknown = null;
  #complaint: string | null = null;

  constructor(volume: Volume, region: MemoryRegion) {
    this.#regionBytes = region.facts.sizeBytes;
    this.#session = new Session(volume, {
      ...{
        uid: 0,
        debug: null,
        warn: () => {},
        mountSource: "/region",
        mountpoint: "/mnt",
        directSocket: "",
      },
      ...{ atime: "relatime", noDirectoryAtime: false, synchronous: null, cache: "auto", ring: null },
    });
    const native = addon();
    const { openChannel } = native;
    native.openChannel = (_, buffer, __, onRequest) => {
      this.#buffer = buffer;
      this.#receive = onRequest;
      return this.#channel();
    };
    try {
      this.#session.attach(-1);
    } finally {
      native.openChannel = openChannel;
    }
    // Our own bugs are thrown from the event loop (session.ts), where they end a daemon.
    process.setUncaughtExceptionCaptureCallback((error) => {
      this.#thrown ??= error;
    });
  }

  #channel(): KernelChannel {
    return {
      useRing: () => 0,
      entry: () => Buffer.alloc(0),
      ...{ close: () => {}, counters: { requests: 0, wakeups: 0, pollHits: 0 } },
      notify: async () => 0,
      reply: (unique, error, payload, start, length) => this.#answered(unique, error, payload, start, length),
      replyRegion: (unique, _, pieces, count) => {
        let total = 0;
        for (let index = 0; index < count; index += 1) {
          const [at, length] = [pieces[2 * index] as number, pieces[2 * index + 1] as number];
          total += length;
          if (length <= 0 || (at !== -1 && (at < 0 || at + length > this.#regionBytes)))
            this.#complaint ??= `a READ is answered with ${length} bytes at ${at} of the region`;
        }
        return this.#answered(unique, 0, new Uint8Array(total), 0, total);
      },
    };
  }

  send(bytes: Uint8Array, one: Call): void {
    this.#buffer.set(bytes);
    const header = viewOf(bytes);
    const row = opRow(header.getUint32(InHeader.at.opcode, true));
    const seen = new Request(Buffer.from(bytes));
    try {
      seen.load(bytes.length);
    } catch {
      // It says so when it is asked.
    }
    const line = printRequest(seen);
    if (row?.reply !== false)
      this.#open.set(header.getBigUint64(InHeader.at.unique, true), { row, call: one, line });
    this.#receive(bytes.length);
    this.#complain();
  }

  #answered(unique: bigint, error: number, payload: Uint8Array, start: number, length: number): number {
    const open = this.#open.get(unique);
    if (open === undefined) {
      this.#complaint ??= `a second answer to ${unique}, or one that nobody waits for`;
      return 0;
    }
    const { row, call: one, line } = open;
    this.#open.delete(unique);
    if (error < 0 || error > 4095 || (error !== 0 && length !== 0))
      this.#complaint ??= `${line}: answered with error ${error} and ${length} bytes`;
    if (error === 0 && row !== undefined) {
      const least = (row.out?.size ?? 0) + (row.outSecond?.size ?? 0);
      const isInit = row.opcode === Opcode.INIT;
      if (length < least && !isInit)
        this.#complaint ??= `${line}: answered with ${length} bytes instead of ${least}`;
      const request = { unique, opcode: row.opcode, row };
      printReply(request, 0, payload, start, length);
    }
    this.words.push(`${row?.name}${one.ioctl} ${error}`);
    // ENOENT: the caller is gone.
    return one.gone ? 2 : 0;
  }

  /** Whoever still waits is interrupted, and answered then. */
  async settle(): Promise<void> {
    for (let left = 0; left < 8; left += 1) await turn();
    this.#complain();
    for (let tries = 0; tries < 200 && this.#open.size > 0; tries += 1) {
      for (const unique of this.#open.keys()) {
        const interrupt = Buffer.alloc(InHeader.size + 8);
        const view = viewOf(interrupt);
        InHeader.encode(view, 0, { len: interrupt.length, opcode: Opcode.INTERRUPT, unique: unique | 1n });
        view.setBigUint64(InHeader.size, unique, true);
        this.#buffer.set(interrupt);
        this.#receive(interrupt.length);
      }
      await (tries < 20 ? turn() : sleep(5));
      this.#complain();
    }
    const [left] = this.#open.values();
    if (left !== undefined) throw new Finding(`no answer to ${left.row?.name} (${left.call.ioctl})`);
  }

  #complain(): void {
    if (this.#thrown !== null) throw this.#thrown;
    if (this.#complaint !== null) throw new Finding(this.#complaint);
  }

  async close(): Promise<void> {
    await this.#session.close();
    await turn();
    process.setUncaughtExceptionCaptureCallback(null);
    this.#complain();
  }
}
