/** One frame of `mapdirect top`. Pure: what it shows, it is given. */
import { append } from "../base/arrays.ts";
import { formatSize } from "../daemon/sizes.ts";
import type { LeaseReport } from "../session/control.ts";
import type { Statistics } from "../session/statistics.ts";
import { type Colours, stateColour } from "./colours.ts";
import type { Rates } from "./rates.ts";

export interface Frame {
  readonly name: string;
  readonly statistics: Statistics;
  readonly rates: Rates;
  readonly leases: readonly LeaseReport[];
}

export interface Screen {
  readonly columns: number;
  /** Lines; what does not fit is left out, the least important first. */
  readonly rows: number;
  readonly colours: Colours;
}

const OPERATIONS_MAX = 12;

export function frameLines(frame: Frame, screen: Screen): string[] {
  const { statistics: now, rates, leases, name } = frame;
  const { colours } = screen;
  const bold = (text: string): string => colours.bold(text);
  const faint = (text: string): string => colours.dim(text);
  const head = (titles: string): string => colours.underline(titles);
  const { space } = now;
  const used = space.size - space.free;
  const lines: string[] = [
    `${bold(name)}  ${faint(`up ${duration(now.uptime_s)}, ${formatSize(now.memory_bytes)} of memory`)}`,
    `${bold(count(rates.requests))} requests/s, ${formatSize(rates.readBytes)}/s read, ${formatSize(rates.writtenBytes)}/s written, ` +
      `${count(rates.errors)} errors/s, ${now.waiting} waiting, ${now.open_files} open files`,
    `space   ${bar(used / space.size, 24, colours)} ${percent(used / space.size)} of ${formatSize(space.size)}, ${bold(formatSize(space.free))} free, ` +
      `${formatSize(space.metadata)} metadata${space.quarantined > 0 ? `, ${colours.magenta(`${formatSize(space.quarantined)} in quarantine`)}` : ""}`,
    `leases  ${bold(`${now.leases_by.held}`)} held, ${paintIf(now.leases_by.breaking > 0, colours.red, `${now.leases_by.breaking} breaking`)}, ` +
      `${now.leases_by.revoked + now.leases_by.ended} not let go; ${now.grants} granted, ${now.breaks} broken, ${now.revocations} revoked, ${now.refusals} refusals`,
    `log     ${formatSize(now.log_bytes)} written, ${formatSize(rates.logBytes)}/s, ${now.log_segments} segments, ` +
      `${now.checkpoints} checkpoints${now.checkpointing ? ", one running" : ""}, longest slice ${now.longest_slice_ms.toFixed(1)} ms`,
  ];
  if (now.read_only !== null) lines.push(colours.red(`read-only: ${now.read_only}`));
  const leaseRows = leases.map((lease) => leaseLine(lease, colours));
  // Both tables have a title and an empty line before them.
  const room = Math.max(0, screen.rows - lines.length - 4);
  const operationRoom = Math.min(OPERATIONS_MAX, Math.max(4, room - leaseRows.length), room);
  lines.push(
    "",
    head(
      `${"operation".padEnd(16)}${["/s", "p50", "p90", "p99"].map((title) => title.padStart(10)).join("")}`,
    ),
  );
  for (const { operation, perSecond, micros } of rates.operations.slice(0, operationRoom)) {
    const times = [micros.p50, micros.p90, micros.p99].map((value) => time(value).padStart(10)).join("");
    const line = `${operation.padEnd(16)}${count(perSecond).padStart(10)}${times}`;
    lines.push(perSecond > 0 ? line : faint(line));
  }
  const leaseRoom = room - Math.min(operationRoom, rates.operations.length);
  if (leaseRows.length > 0 && leaseRoom > 0) {
    lines.push(
      "",
      head(
        `${"lease".padStart(6)}  ${"kind".padEnd(9)}  ${"state".padEnd(8)}  ${"age".padStart(7)}  ${"holder".padEnd(22)}  ${"range".padEnd(19)}  file`,
      ),
    );
    const shown = leaseRows.length > leaseRoom ? leaseRoom - 1 : leaseRoom;
    append(lines, leaseRows.slice(0, Math.max(0, shown)));
    if (leaseRows.length > leaseRoom)
      lines.push(faint(`and ${leaseRows.length - shown} more: 'mapdirect leases'`));
  }
  return lines.map((line) => clip(line, screen.columns));
}

function leaseLine(lease: LeaseReport, colours: Colours): string {
  const holder = `${lease.command} (${lease.pid})`;
  const range = `${formatSize(lease.length)} at ${formatSize(lease.offset)}`;
  const state = stateColour(colours, lease.state)(lease.state.padEnd(8));
  return `${`${lease.id}`.padStart(6)}  ${lease.kind.padEnd(9)}  ${state}  ${duration(lease.age_s).padStart(7)}  ${holder.padEnd(22)}  ${range.padEnd(19)}  ${printable(lease.file)}`;
}

/** A name from the mount must not talk to the terminal. */
function printable(text: string): string {
  return text.replace(/[^\x20-\x7e\u00a0-\u{10ffff}]/gu, "?");
}

const count = (value: number): string => Math.round(value).toLocaleString("en");
const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
const paintIf = (wanted: boolean, paint: (text: string) => string, text: string): string =>
  wanted ? paint(text) : text;

function time(micros: number): string {
  if (micros >= 1e6) return `${(micros / 1e6).toFixed(2)} s`;
  if (micros >= 1e3) return `${(micros / 1e3).toFixed(micros >= 1e4 ? 0 : 1)} ms`;
  return `${micros.toFixed(0)} us`;
}

function duration(seconds: number): string {
  const whole = Math.floor(seconds);
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86_400)} d`;
}

function bar(share: number, width: number, colours: Colours): string {
  const full = Math.round(Math.min(1, Math.max(0, share)) * width);
  return `[${colours.blue("#".repeat(full))}${colours.dim(".".repeat(width - full))}]`;
}

const ESC = String.fromCharCode(27);
const PARTS = new RegExp(`${ESC}\\[[0-9;]*m|[^${ESC}]`, "gu");

/** Cut to so many columns; sequences that colour take none. */
function clip(line: string, columns: number): string {
  let left = columns;
  let out = "";
  for (const [part] of line.matchAll(PARTS)) {
    if (part.startsWith(ESC)) out += part;
    else if (left > 0) {
      out += part;
      left -= 1;
    }
  }
  return out;
}
