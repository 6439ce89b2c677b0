/** top: a mount, live in the terminal. */
import { setTimeout as sleep } from "node:timers/promises";
import { Command } from "commander";
import { ask, asLeases, withOpen } from "../../daemon/client.ts";
import { Failure, usage } from "../../daemon/failure.ts";
import { parseCount } from "../../daemon/sizes.ts";
import type { VolumeInfo } from "../../session/volume.ts";
import { coloursFor } from "../colours.ts";
import { print } from "../output.ts";
import { ratesBetween } from "../rates.ts";
import { type Frame, frameLines } from "../top.ts";
import { whereIs } from "../volumes.ts";
import { askStatistics } from "./stats.ts";

export function topCommand(): Command {
  return new Command("top")
    .summary("watch a mount in the terminal")
    .description(
      "Show what a mount is doing, again and again: requests a second and how long they take, leases, breaks, space,\n" +
        "log. q ends it. Where standard output is no terminal, one frame is printed. Of leases, root and whoever mounted\n" +
        "see all, others their own.",
    )
    .argument("<mountpoint>", "where a region is mounted")
    .option("--once", "print one frame, of the requests of one interval", false)
    .option("--interval <seconds>", "from one frame to the next", "1")
    .addHelpText("after", "\nExamples:\n  mapdirect top /mnt\n  mapdirect top --once /mnt")
    .action(top);
}

const PLAIN_COLUMNS = 160;
const PLAIN_ROWS = 200;

async function top(path: string, flags: { once: boolean; interval: string }): Promise<void> {
  const seconds = parseCount(flags.interval, 3600);
  if (seconds === undefined || seconds === 0)
    throw usage(
      `--interval ${flags.interval}`,
      "it wants whole seconds, from 1 to 3600",
      "see 'mapdirect top --help'",
    );
  const found = whereIs(path);
  if (!found.mounted) throw new Failure(path, "it is not mounted", "mount it");
  const watch = new Watch(found.path);
  watch.look();
  if (!flags.once && process.stdout.isTTY && process.stdin.isTTY) await live(watch, seconds);
  else {
    await sleep(1000 * seconds);
    const screen = { columns: PLAIN_COLUMNS, rows: PLAIN_ROWS, colours: coloursFor(process.stdout) };
    print(frameLines(watch.look(), screen).join("\n"));
  }
}

class Watch {
  readonly #path: string;
  readonly #name: string;
  #before: { statistics: Frame["statistics"]; atMs: number } | null = null;

  constructor(path: string) {
    this.#path = path;
    const { label } = withOpen(path, (descriptor) => ask(descriptor, "INFO")) as VolumeInfo;
    this.#name = label === "" ? path : `${label} on ${path}`;
  }

  look(): Frame {
    const statistics = askStatistics(this.#path);
    const leases = withOpen(this.#path, (descriptor) => asLeases(ask(descriptor, "LEASES")));
    const atMs = performance.now();
    const seconds = this.#before === null ? 1 : (atMs - this.#before.atMs) / 1000;
    const rates = ratesBetween(this.#before?.statistics ?? null, statistics, seconds);
    this.#before = { statistics, atMs };
    return { name: this.#name, statistics, rates, leases };
  }
}

/** q, Q; Ctrl-C and Ctrl-D, which in raw mode are keys like others. */
const END_KEYS = [0x71, 0x51, 0x03, 0x04];

const ESC = "\u001b[";
/** The other screen, without a cursor; and back to what was there. */
const ENTER = `${ESC}?1049h${ESC}?25l`;
const LEAVE = `${ESC}?25h${ESC}?1049l`;

/** However it ends, the terminal is as it was. @throws Failure when the mount goes away. */
async function live(watch: Watch, seconds: number): Promise<void> {
  const { stdin, stdout } = process;
  const colours = coloursFor(stdout);
  let frame: Frame | null = null;
  const draw = (): void => {
    if (frame === null) return;
    const { columns = 80, rows = 24 } = stdout;
    const lines = frameLines(frame, { columns, rows: rows - 1, colours }).slice(0, rows - 1);
    // Each line over the one before: no moment in which the screen is empty.
    stdout.write(`${ESC}H${lines.map((line) => `${line}${ESC}K\r\n`).join("")}${ESC}J`);
  };
  const ended = new AbortController();
  const end = (): void => ended.abort();
  const restore = (): void => {
    stdin.setRawMode(false);
    stdout.write(LEAVE);
  };
  stdout.write(ENTER);
  stdin.setRawMode(true);
  process.once("exit", restore);
  for (const signal of ["SIGTERM", "SIGHUP", "SIGINT"] as const) process.once(signal, end);
  stdin.on("data", (keys: Buffer) => {
    if (keys.some((key) => END_KEYS.includes(key))) end();
  });
  stdout.on("resize", draw);
  try {
    while (!ended.signal.aborted) {
      frame = watch.look();
      draw();
      await sleep(1000 * seconds, undefined, { signal: ended.signal }).catch(() => {});
    }
  } finally {
    stdin.pause();
    process.removeListener("exit", restore);
    restore();
  }
}
