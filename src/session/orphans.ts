/**
 * Orphaned mappings: processes that mapped the region before this mount, and their children (semantics R23).
 *
 * Invariants:
 * - what any of them can reach is claimed in the quarantine before the first allocation;
 * - the claim follows the mappings, not the processes: a block leaves it when no process at all maps it, in two passes
 *   over /proc in a row, and never returns to it;
 * - while a process that may open the region cannot be looked at, the blocks that files had at the mount stay claimed.
 */
import { after } from "../base/faults.ts";
import { findMappers, type Mapper, type MapperScan } from "../lease/ghosts.ts";
import { processOfThread } from "../lease/process.ts";
import type { Found } from "../namespace/store.ts";
import type { Region } from "../region/region.ts";
import type { Run } from "../space/allocator.ts";
import type { Quarantine } from "../space/quarantine.ts";
import { blocksIn, intersection, union } from "../space/runs.ts";

/** How long after one look the next begins, milliseconds. */
const SCAN_MS = 1000;
/** As many are named in a warning. */
const NAMED_MAX = 8;

interface Space {
  readonly quarantine: Quarantine;
  releaseQuarantine(owner: number): void;
}

export class Orphans {
  readonly warnings: string[] = [];
  readonly #region: Region;
  readonly #blockBytes: number;
  #claimed: readonly Run[];
  /** Of what is claimed: what a process may reach that cannot be looked at. */
  #hidden: readonly Run[];
  /** As of the last look: who, and what of the claim. Others than those from before may be among them. */
  #mappers: readonly Mapper[] = [];
  /** Leases have positive numbers. Each claim has one of its own. */
  #owner = -1;
  #timer: NodeJS.Timeout | null = null;
  #closed = false;

  private constructor(region: Region, blockBytes: number, claimed: readonly Run[], hidden: readonly Run[]) {
    this.#region = region;
    this.#blockBytes = blockBytes;
    this.#claimed = claimed;
    this.#hidden = hidden;
  }

  static async find(region: Region, found: Found): Promise<Orphans> {
    const scan = await findMappers(region, found.blockBytes);
    const mapped = union(scan.mappers.flatMap(({ runs }) => runs));
    // Who cannot be looked at counts only where somebody may have been left: after a crash, and not after a reboot.
    const hides = !found.unused && (scan.hidden.length > 0 || !scan.settled);
    const hidden = hides ? union(found.inUse()) : [];
    const orphans = new Orphans(region, found.blockBytes, union([...mapped, ...hidden]), hidden);
    orphans.#remember(scan.mappers);
    if (orphans.#mappers.length > 0) orphans.warnings.push(namesOf(orphans.#mappers));
    if (hides) orphans.warnings.push(inWords(scan));
    return orphans;
  }

  get claim(): readonly { readonly owner: number; readonly runs: readonly Run[] }[] {
    return this.#claimed.length === 0 ? [] : [{ owner: this.#owner, runs: this.#claimed }];
  }

  get mappers(): readonly Mapper[] {
    return this.#mappers;
  }

  #remember(mappers: readonly Mapper[]): void {
    this.#mappers = mappers
      .map(({ pid, runs }) => ({ pid, runs: intersection(union(runs), this.#claimed) }))
      .filter(({ runs }) => runs.length > 0);
  }

  /** From now on what nobody maps any more goes back. */
  watch(space: Space): void {
    if (this.#closed || this.#claimed.length === 0) return;
    this.#timer = after(SCAN_MS, "looking for orphaned mappings", () =>
      this.#look(space).finally(() => this.watch(space)),
    );
    this.#timer.unref();
  }

  async #look(space: Space): Promise<void> {
    // What cannot be found out counts as mapped.
    const scan = await findMappers(this.#region, this.#blockBytes).catch(() => null);
    if (scan === null || this.#closed || !scan.settled) return;
    const mapped = scan.mappers.flatMap(({ runs }) => runs);
    if (scan.hidden.length === 0) this.#hidden = [];
    const left = intersection(this.#claimed, union([...mapped, ...this.#hidden]));
    this.#remember(scan.mappers);
    if (blocksIn(left) === blocksIn(this.#claimed)) return;
    const before = this.#owner;
    this.#claimed = left;
    this.#owner -= 1;
    // First the new one: a block that both cover is never without a claim.
    if (left.length > 0) space.quarantine.claim(this.#owner, left);
    space.releaseQuarantine(before);
  }

  close(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
  }
}

function namesOf(mappers: readonly Mapper[]): string {
  const names = mappers
    .slice(0, NAMED_MAX)
    .map(({ pid }) => `${processOfThread(pid).command} (${pid})`.trimStart());
  const more = mappers.length > NAMED_MAX ? ` and ${mappers.length - NAMED_MAX} more` : "";
  const who = `${mappers.length === 1 ? "process" : "processes"} ${names.join(", ")}${more}`;
  return `files are still mapped from before this mount, by ${who}: what they reach is not used again before they have unmapped it`;
}

function inWords({ hidden }: MapperScan): string {
  const names = hidden
    .slice(0, NAMED_MAX)
    .map(({ pid }) => `${pid} ${processOfThread(pid).command}`.trimEnd());
  const more = hidden.length > NAMED_MAX ? ` and ${hidden.length - NAMED_MAX} more` : "";
  const who =
    hidden.length === 0
      ? "processes come and go too fast to be looked at"
      : `processes ${names.join(", ")}${more} cannot be looked at`;
  return `${who}, and may map the region from before this mount: until that is known, the space of files that are deleted now is not used again`;
}
