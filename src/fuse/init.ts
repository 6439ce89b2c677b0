/**
 * The INIT handshake: which protocol version and which features both sides use.
 *
 * Rules (the "Version negotiation" comment of linux/fuse.h, and process_init_reply() of fs/fuse/inode.c):
 * - kernel major newer than ours: answer with our major, ignore the rest, and a new INIT comes;
 * - kernel major older, or minor below 31: EPROTO, which fails the mount with a message;
 * - otherwise the smaller minor counts, and a feature is on when the kernel offered it and the daemon wants it;
 * - features above bit 31 exist only if the kernel set INIT_EXT, and the reply must set it for flags2 to be read;
 * - the kernel reads max_pages only with MAX_PAGES; without it a request has at most 32 pages.
 */
import { FsError, invariant } from "../base/errors.ts";
import type { StructValue } from "../layout/struct.ts";
import {
  FUSE_DEFAULT_MAX_PAGES_PER_REQ,
  FUSE_MAJOR,
  FUSE_MIN_READ_BUFFER,
  FUSE_MINOR,
  FUSE_MINOR_MIN,
  InHeader,
  InitBit,
  type InitFlagName,
  type InitIn,
  InitOut,
  WriteIn,
} from "./kernel.ts";

/** What the daemon would like. */
export interface InitWishes {
  readonly flags: readonly InitFlagName[];
  /** Most bytes in one WRITE and one READ; at least a page. */
  readonly maxWriteBytes: number;
  readonly maxReadaheadBytes: number;
  readonly maxBackground: number;
  readonly congestionThreshold: number;
  /** Page size of the machine, bytes: the unit of max_pages. */
  readonly pageBytes?: number;
  /** Stacking depth for PASSTHROUGH; 0 leaves it off. */
  readonly maxStackDepth?: number;
  /** Seconds for REQUEST_TIMEOUT; 0 leaves it off. */
  readonly requestTimeoutSec?: number;
}

/** Every INIT flag by the kernel's name without FUSE_; true where it was negotiated. */
export type Features = { readonly [K in InitFlagName]: boolean };

export interface Negotiated {
  /** true: only a version was answered, another INIT follows; nothing else here counts. */
  readonly again: boolean;
  /** The payload of the reply. */
  readonly reply: Uint8Array;
  /** The minor version that both use. */
  readonly minor: number;
  /** What the kernel said, for `mapdirect info` and for features that it offers beyond what we know. */
  readonly kernelMinor: number;
  readonly features: Features;
  /** Flags that the kernel offered, by name; "bit N" for those that this code does not know. */
  readonly offered: readonly string[];
  /** Flags that were wanted and not offered. */
  readonly refused: readonly InitFlagName[];
  /** Bytes; what one WRITE carries at most. The kernel may lower it further (sysctl fs.fuse.max_pages_limit). */
  readonly maxWriteBytes: number;
  readonly maxPages: number;
  readonly maxReadaheadBytes: number;
}

const flagNames = Object.keys(InitBit) as InitFlagName[];
const noFeatures = Object.fromEntries(flagNames.map((name) => [name, false])) as Features;

const hasBit = (low: number, high: number, bit: number): boolean =>
  ((bit < 32 ? low >>> bit : high >>> (bit - 32)) & 1) === 1;

/** Answer an INIT. Throws FsError(EPROTO) for a kernel that is too old. */
export function negotiate(kernel: StructValue<typeof InitIn>, wishes: InitWishes): Negotiated {
  const page = wishes.pageBytes ?? 4096;
  invariant(wishes.maxWriteBytes >= page, "max_write below a page");
  invariant(wishes.maxBackground <= 0xffff && wishes.congestionThreshold <= 0xffff, "16-bit limits");

  if (kernel.major > FUSE_MAJOR) {
    return {
      again: true,
      reply: encode({ major: FUSE_MAJOR, minor: FUSE_MINOR }),
      minor: FUSE_MINOR,
      kernelMinor: kernel.minor,
      features: noFeatures,
      offered: [],
      refused: [],
      maxWriteBytes: 0,
      maxPages: 0,
      maxReadaheadBytes: 0,
    };
  }
  if (kernel.major < FUSE_MAJOR || kernel.minor < FUSE_MINOR_MIN) {
    throw new FsError(
      "EPROTO",
      `this kernel speaks FUSE ${kernel.major}.${kernel.minor}; ${FUSE_MAJOR}.${FUSE_MINOR_MIN} (Linux 5.4) is the least`,
    );
  }

  const low = kernel.flags;
  const high = hasBit(low, 0, InitBit.INIT_EXT) ? kernel.flags2 : 0;
  const wanted = new Set<InitFlagName>(wishes.flags);
  wanted.add("INIT_EXT");
  wanted.add("MAX_PAGES");
  wanted.add("BIG_WRITES");
  wanted.delete("INIT_RESERVED");
  if ((wishes.maxStackDepth ?? 0) === 0) wanted.delete("PASSTHROUGH");
  if ((wishes.requestTimeoutSec ?? 0) === 0) wanted.delete("REQUEST_TIMEOUT");

  const features = { ...noFeatures } as { -readonly [K in InitFlagName]: boolean };
  const refused: InitFlagName[] = [];
  let replyLow = 0;
  let replyHigh = 0;
  for (const name of wanted) {
    const bit = InitBit[name];
    if (!hasBit(low, high, bit)) {
      refused.push(name);
      continue;
    }
    features[name] = true;
    if (bit < 32) replyLow |= 1 << bit;
    else replyHigh |= 1 << (bit - 32);
  }

  const nameByBit = new Map<number, string>(flagNames.map((name) => [InitBit[name], name]));
  const offered: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if (hasBit(low, high, bit)) offered.push(nameByBit.get(bit) ?? `bit ${bit}`);
  }

  const maxPages = features.MAX_PAGES
    ? Math.min(Math.ceil(wishes.maxWriteBytes / page), 0xffff)
    : FUSE_DEFAULT_MAX_PAGES_PER_REQ;
  const maxWriteBytes = Math.min(wishes.maxWriteBytes, maxPages * page);
  const maxReadaheadBytes = Math.min(wishes.maxReadaheadBytes, kernel.maxReadahead);
  const minor = Math.min(kernel.minor, FUSE_MINOR);

  return {
    again: false,
    reply: encode({
      major: FUSE_MAJOR,
      minor,
      maxReadahead: maxReadaheadBytes,
      flags: replyLow >>> 0,
      maxBackground: wishes.maxBackground,
      congestionThreshold: wishes.congestionThreshold,
      maxWrite: maxWriteBytes,
      timeGran: 1,
      maxPages: features.MAX_PAGES ? maxPages : 0,
      flags2: replyHigh >>> 0,
      maxStackDepth: features.PASSTHROUGH ? (wishes.maxStackDepth ?? 0) : 0,
      requestTimeout: features.REQUEST_TIMEOUT ? (wishes.requestTimeoutSec ?? 0) : 0,
    }),
    minor,
    kernelMinor: kernel.minor,
    features,
    offered,
    refused,
    maxWriteBytes,
    maxPages,
    maxReadaheadBytes,
  };
}

/** The names of the features that are on. */
export function featureNames(features: Features): InitFlagName[] {
  return flagNames.filter((name) => features[name]);
}

/**
 * Bytes that the request buffer needs. fuse_dev_do_read() refuses a read(2) with less room than a header, a write's
 * fixed part and max_write; one page more leaves room for names and extensions of other requests.
 */
export function requestBufferBytes(maxWriteBytes: number, pageBytes = 4096): number {
  const least = Math.max(FUSE_MIN_READ_BUFFER, InHeader.size + WriteIn.size + maxWriteBytes);
  return Math.ceil(least / pageBytes) * pageBytes + pageBytes;
}

function encode(value: Partial<StructValue<typeof InitOut>>): Uint8Array {
  const reply = new Uint8Array(InitOut.size);
  InitOut.encode(new DataView(reply.buffer), 0, value);
  return reply;
}
