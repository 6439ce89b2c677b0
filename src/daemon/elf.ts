/**
 * What an ELF file says of itself, as far as it decides whether a library can be loaded before it: elf(5).
 *
 * Invariants:
 * - the file is anybody's: each offset and size in it is checked before it is used, and nothing of it is run;
 * - what a damaged file claims costs no more memory than `TABLE_BYTES_MAX`.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { CorruptionError } from "../base/errors.ts";
import { big64, type StructValue, struct, u8, u16, u32, u64, viewOf } from "../layout/struct.ts";

/** e_ident and the rest of the header. */
const Header = struct(
  "elf64_header",
  "the beginning of an ELF file of 64 bits",
  {
    magic: u32("0x7f ELF"),
    class: u8("1: 32 bits, 2: 64 bits"),
    data: u8("1: little-endian"),
    identVersion: u8("1"),
    osAbi: u8("not looked at"),
    padding: u64("not looked at"),
    type: u16("2: executable, 3: shared object or position-independent executable"),
    machine: u16("EM_…"),
    version: u32("1"),
    entry: u64("not looked at"),
    programOffset: u64("of the program headers, in the file"),
    sectionOffset: u64("of the section headers; 0: none"),
    flags: u32("not looked at"),
    headerBytes: u16("of this header"),
    programBytes: u16("of one program header"),
    programCount: u16("program headers"),
    sectionBytes: u16("of one section header"),
    sectionCount: u16("section headers"),
    sectionNames: u16("not looked at"),
  },
  64,
);

const Segment = struct(
  "elf64_segment",
  "one program header",
  {
    type: u32("PT_…"),
    flags: u32("not looked at"),
    offset: u64("in the file"),
    address: u64("in memory"),
    physical: u64("not looked at"),
    fileBytes: u64("in the file"),
    memoryBytes: u64("not looked at"),
    alignment: u64("not looked at"),
  },
  56,
);

const Section = struct(
  "elf64_section",
  "one section header",
  {
    name: u32("not looked at"),
    type: u32("SHT_…"),
    flags: u64("not looked at"),
    address: u64("not looked at"),
    offset: u64("in the file"),
    bytes: u64("in the file"),
    link: u32("of a symbol table: the section of its names"),
    info: u32("not looked at"),
    alignment: u64("not looked at"),
    entryBytes: u64("not looked at"),
  },
  64,
);

const Symbol64 = struct(
  "elf64_symbol",
  "one symbol",
  {
    name: u32("where in the section of names"),
    info: u8("not looked at"),
    other: u8("not looked at"),
    section: u16("0: defined elsewhere"),
    valueLow: u32("not looked at"),
    valueHigh: u32("not looked at"),
    sizeLow: u32("not looked at"),
    sizeHigh: u32("not looked at"),
  },
  24,
);

const Dynamic = struct(
  "elf64_dynamic",
  "one entry of the dynamic section",
  { tag: big64("DT_…"), value: big64("a number, an address, or where in the string table") },
  16,
);

const MAGIC = 0x464c457f;
const LITTLE_ENDIAN = 1;
const CLASS_64 = 2;
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const PT_NOTE = 4;
const SHT_DYNSYM = 11;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const DT_STRSZ = 10;
const DT_RPATH = 15;
const DT_RUNPATH = 29;

const PATH_BYTES_MAX = 4096;
const TABLE_BYTES_MAX = 64 * 1024 * 1024;

export interface Elf {
  readonly bits: 32 | 64;
  /** EM_… */
  readonly machine: number;
  /** The dynamic linker that it names; null: it is linked statically. */
  readonly interpreter: string | null;
  /** Whose notes it has: "GNU", "Go", … */
  readonly notes: ReadonlySet<string>;
  /** The libraries that it is linked with, by name, and where it wants them looked for first. */
  readonly needed: readonly string[];
  readonly folders: readonly string[];
  /** Names that others are to provide, and those that it provides itself; empty where there is no such table. */
  readonly imports: ReadonlySet<string>;
  readonly exports: ReadonlySet<string>;
}

/** The file is ELF, and not as elf(5) says. */
export class ElfError extends Error {}

class Reader {
  readonly #descriptor: number;
  readonly #size: number;

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
    this.#size = fstatSync(descriptor).size;
  }

  /** @throws ElfError when they are not all there. */
  read(offset: number, bytes: number, what: string): Uint8Array {
    if (bytes > TABLE_BYTES_MAX || offset > this.#size || bytes > this.#size - offset)
      throw new ElfError(`its ${what} lie outside of it`);
    const data = new Uint8Array(bytes);
    for (let done = 0; done < bytes; ) {
      const count = readSync(this.#descriptor, data, done, bytes - done, offset + done);
      if (count === 0) throw new ElfError(`its ${what} end early`);
      done += count;
    }
    return data;
  }

  begins(bytes: number): Uint8Array {
    return this.read(0, Math.min(bytes, this.#size), "first bytes");
  }
}

const terminated = (data: Uint8Array, at: number): string => {
  const end = data.indexOf(0, at);
  return new TextDecoder().decode(data.subarray(at, end < 0 ? data.length : end));
};

/** The names in a PT_NOTE: each note is three words, its name and its description, each padded to words. */
function notesIn(data: Uint8Array, found: Set<string>): void {
  const view = viewOf(data);
  const padded = (bytes: number): number => Math.ceil(bytes / 4) * 4;
  for (let at = 0; at + 12 <= data.length; ) {
    const nameBytes = view.getUint32(at, true);
    const descriptionBytes = view.getUint32(at + 4, true);
    if (nameBytes > data.length - at - 12) return;
    found.add(terminated(data.subarray(at + 12, at + 12 + nameBytes), 0));
    at += 12 + padded(nameBytes) + padded(descriptionBytes);
  }
}

type SegmentValue = StructValue<typeof Segment>;

/** Of a dynamic section, strings by tag. Its string table is named by where it will be in memory. */
function stringsIn(
  file: Reader,
  dynamic: Uint8Array,
  segments: readonly SegmentValue[],
): Map<number, string[]> {
  const entries: { tag: number; value: number }[] = [];
  for (let at = 0; at + Dynamic.size <= dynamic.length; at += Dynamic.size) {
    const { tag, value } = Dynamic.decode(viewOf(dynamic), at);
    if (tag === 0n) break;
    entries.push({ tag: Number(tag), value: Number(value) });
  }
  const only = (wanted: number): number => entries.find(({ tag }) => tag === wanted)?.value ?? 0;
  const address = only(DT_STRTAB);
  const loaded = segments.find(
    ({ type, address: start, fileBytes }) =>
      type === PT_LOAD && start <= address && address - start < fileBytes,
  );
  const found = new Map<number, string[]>();
  if (loaded === undefined) return found;
  const table = file.read(loaded.offset + (address - loaded.address), only(DT_STRSZ), "string table");
  for (const { tag, value } of entries) {
    if (tag !== DT_NEEDED && tag !== DT_RPATH && tag !== DT_RUNPATH) continue;
    if (value >= table.length) throw new ElfError("a string lies outside of its table");
    found.set(tag, [...(found.get(tag) ?? []), terminated(table, value)]);
  }
  return found;
}

function symbolsIn(table: Uint8Array, names: Uint8Array, imports: Set<string>, exports: Set<string>): void {
  const view = viewOf(table);
  for (let at = 0; at + Symbol64.size <= table.length; at += Symbol64.size) {
    const { name, section } = Symbol64.decode(view, at);
    if (name === 0 || name >= names.length) continue;
    (section === 0 ? imports : exports).add(terminated(names, name));
  }
}

/** Null: no ELF file. @throws ElfError; an error of Node's where the file cannot be read. */
export function readElf(path: string): Elf | null {
  const descriptor = openSync(path, "r");
  try {
    return read(new Reader(descriptor));
  } catch (error) {
    // A number that no file reaches.
    if (error instanceof CorruptionError) throw new ElfError(error.message);
    throw error;
  } finally {
    closeSync(descriptor);
  }
}

function read(file: Reader): Elf | null {
  const begins = file.begins(Header.size);
  if (begins.length < 20 || viewOf(begins).getUint32(0, true) !== MAGIC) return null;
  const header = begins.length < Header.size ? null : Header.decode(viewOf(begins), 0);
  const notes = new Set<string>();
  const imports = new Set<string>();
  const exports = new Set<string>();
  const dynamic = new Map<number, string[]>();
  let interpreter: string | null = null;
  const bits = begins[Header.at.class] === CLASS_64 ? 64 : 32;
  if (header === null || bits !== 64 || header.data !== LITTLE_ENDIAN) {
    const machine = viewOf(begins).getUint16(Header.at.machine, true);
    return { bits, machine, interpreter, notes, needed: [], folders: [], imports, exports };
  }

  const { programBytes, programCount, sectionBytes, sectionCount } = header;
  if (programCount > 0 && programBytes < Segment.size)
    throw new ElfError("its program headers are too small");
  const headers = file.read(header.programOffset, programBytes * programCount, "program headers");
  const segments = Array.from({ length: programCount }, (_, index) =>
    Segment.decode(viewOf(headers), index * programBytes),
  );
  for (const { type, offset, fileBytes } of segments) {
    if (type === PT_INTERP) {
      if (fileBytes > PATH_BYTES_MAX) throw new ElfError("the name of its interpreter is too long");
      interpreter = terminated(file.read(offset, fileBytes, "interpreter's name"), 0);
    } else if (type === PT_NOTE) notesIn(file.read(offset, fileBytes, "notes"), notes);
    else if (type === PT_DYNAMIC) {
      const strings = stringsIn(file, file.read(offset, fileBytes, "dynamic section"), segments);
      for (const [tag, texts] of strings) dynamic.set(tag, texts);
    }
  }
  if (header.sectionOffset > 0 && sectionCount > 0 && sectionBytes >= Section.size) {
    const sections = file.read(header.sectionOffset, sectionBytes * sectionCount, "section headers");
    const section = (index: number) => Section.decode(viewOf(sections), index * sectionBytes);
    for (let index = 0; index < sectionCount; index += 1) {
      const { type, offset, bytes, link } = section(index);
      if (type !== SHT_DYNSYM || link >= sectionCount) continue;
      const names = section(link);
      symbolsIn(
        file.read(offset, bytes, "symbols"),
        file.read(names.offset, names.bytes, "names of symbols"),
        imports,
        exports,
      );
    }
  }
  const needed = dynamic.get(DT_NEEDED) ?? [];
  const folders = (dynamic.get(DT_RUNPATH) ?? dynamic.get(DT_RPATH) ?? []).flatMap((text) => text.split(":"));
  return { bits, machine: header.machine, interpreter, notes, needed, folders, imports, exports };
}
