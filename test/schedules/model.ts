/**
 * What the semantics say about a few files and the processes that map them: the expected answer of each operation, and what
 * is true afterwards. Knows nothing of how it is done. Units are pages of 4096 bytes; of a page's content one byte is kept.
 */

export type PageState = "hole" | "unwritten" | "written" | "shared";

export interface Page {
  state: PageState;
  value: number;
}

export type Kind = "seal" | "breakable";

/** How a page looked when it was mapped, which it keeps: the block, zeros, or nothing. */
export type Look = "block" | "zeros" | "beyond";

/** One process's copy of a mapping. */
export interface Copy {
  readonly slot: number;
  /** Pages that it has unmapped, counted from the mapping's first. */
  readonly gone: Set<number>;
  revoked: boolean;
  /** Its lease is over, but it could not be told: it was stopped. What it still reaches is in quarantine. */
  zombie: boolean;
}

export class FileModel {
  pages: Page[] = [];
  /** When a lease on it was last broken, milliseconds. */
  brokenAtMs = Number.NEGATIVE_INFINITY;

  get size(): number {
    return this.pages.length;
  }

  page(index: number): Page {
    const page = this.pages[index];
    if (page === undefined) throw new Error(`page ${index} of ${this.size}`);
    return page;
  }
}

export class Mapping {
  readonly leaseId: number;
  readonly file: FileModel;
  readonly first: number;
  readonly count: number;
  readonly kind: Kind;
  readonly looks: readonly Look[];
  /** Byte offsets in the region; undefined where there is no block. */
  readonly places: readonly (number | undefined)[];
  /** By process. */
  readonly copies = new Map<string, Copy>();

  constructor(
    leaseId: number,
    range: { file: FileModel; first: number; count: number; kind: Kind },
    looks: readonly Look[],
    places: readonly (number | undefined)[],
  ) {
    this.leaseId = leaseId;
    this.file = range.file;
    this.first = range.first;
    this.count = range.count;
    this.kind = range.kind;
    this.looks = looks;
    this.places = places;
  }

  /** Does the lease stand? */
  get held(): boolean {
    for (const copy of this.copies.values()) {
      if (!copy.revoked && !copy.zombie && copy.gone.size < this.count) return true;
    }
    return false;
  }

  covers(file: FileModel, page: number): boolean {
    return this.file === file && page >= this.first && page < this.first + this.count;
  }
}

/** Why a change of pages is refused or delayed. */
export interface Conflict {
  readonly sealed: boolean;
  readonly toBreak: readonly Mapping[];
}

export class Model {
  mappings: Mapping[] = [];

  conflict(file: FileModel, pages: readonly number[]): Conflict {
    const inTheWay = this.mappings.filter(
      (mapping) => mapping.held && pages.some((page) => mapping.covers(file, page)),
    );
    return {
      sealed: inTheWay.some(({ kind }) => kind === "seal"),
      toBreak: inTheWay.filter(({ kind }) => kind === "breakable"),
    };
  }

  /** These leases are over. Processes that are stopped do not know. */
  revoke(mappings: readonly Mapping[], stopped: ReadonlySet<string>, nowMs: number): void {
    for (const mapping of mappings) {
      mapping.file.brokenAtMs = nowMs;
      for (const [process, copy] of mapping.copies) {
        if (stopped.has(process)) copy.zombie = true;
        else copy.revoked = true;
      }
    }
  }

  /** Pages whose block map an operation would change. */
  static changedBy(
    what: "write" | "truncate" | "punch" | "allocate" | "prepare",
    file: FileModel,
    first: number,
    count: number,
  ): number[] {
    const range = Array.from({ length: count }, (_, index) => first + index);
    switch (what) {
      case "write":
        return file.pages[first]?.state === "written" ? [] : [first];
      case "truncate":
        // Everything behind the new end, holes as well: the range is cut off.
        return Array.from({ length: Math.max(0, file.size - first) }, (_, index) => first + index);
      case "punch":
        return range.filter((page) => (file.pages[page]?.state ?? "hole") !== "hole");
      case "allocate":
        return range.filter((page) => file.page(page).state === "hole");
      case "prepare":
        return range.filter((page) => file.page(page).state !== "written");
    }
  }

  static apply(
    what: "write" | "truncate" | "punch" | "allocate" | "prepare",
    file: FileModel,
    first: number,
    count: number,
    value: number,
  ): void {
    const hole = (): Page => ({ state: "hole", value: 0 });
    const grow = (size: number): void => {
      while (file.size < size) file.pages.push(hole());
    };
    switch (what) {
      case "write":
        grow(first + 1);
        file.pages[first] = { state: "written", value };
        return;
      case "truncate":
        grow(first);
        file.pages.length = first;
        return;
      case "punch":
        for (let page = first; page < Math.min(first + count, file.size); page += 1)
          file.pages[page] = hole();
        return;
      case "allocate":
        for (let page = first; page < first + count; page += 1) {
          if (file.page(page).state === "hole") file.page(page).state = "unwritten";
        }
        return;
      case "prepare":
        for (let page = first; page < first + count; page += 1) file.page(page).state = "written";
    }
  }

  /** What a load of a mapped page answers. */
  static load(mapping: Mapping, copy: Copy, page: number): string {
    if (copy.revoked) return "SIGBUS";
    const look = mapping.looks[page];
    if (look === "beyond") return "SIGBUS";
    return look === "zeros" ? "ok 0" : `ok ${mapping.file.page(mapping.first + page).value}`;
  }
}
