/**
 * One guest: QEMU in software emulation, with the host's root read-only over 9p.
 *
 * Invariants:
 * - a guest has as much time and memory as it was given; then it is killed, by its pid;
 * - what it writes to its console is kept, and is in the error when it does not end as it should;
 * - the host's file systems are read-only to it, but for one folder (`out`).
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, existsSync, readFileSync } from "node:fs";
import { createConnection } from "node:net";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { packageRoot as root } from "../../src/region/addon.ts";
import type { Kernel } from "./kernels.ts";

export const QEMU = "qemu-system-x86_64";

/** Ports of isa-debug-exit as QEMU reports them: 2 * code + 1. */
const exitCodeOf = (status: number | null): number | undefined =>
  status !== null && status % 2 === 1 ? (status - 1) / 2 : undefined;

export interface GuestRequest {
  readonly kernel: Kernel;
  readonly initramfs: string;
  /** Below the project's folder. */
  readonly script: string;
  /** A folder that the guest may write to; its console goes there as well. */
  readonly out: string;
  /** For the kernel command line: memmap= and such. */
  readonly commands?: readonly string[];
  /** More of QEMU's arguments. */
  readonly devices?: readonly string[];
  /** Of QEMU's -m. */
  readonly memory?: string;
  readonly cpus?: number;
  /** Of QEMU's -machine. */
  readonly machine?: string;
  /** Path of a socket for QMP. */
  readonly qmp?: string;
}

export interface GuestEnd {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The script's exit code; undefined if it did not come to that. */
  readonly code: number | undefined;
  readonly ms: number;
  /** It was killed because its time was over. */
  readonly late: boolean;
}

export class Guest {
  readonly consoleFile: string;
  readonly child: ChildProcess;
  readonly #qmp: string | undefined;
  readonly #ended: Promise<Omit<GuestEnd, "late">>;

  constructor(request: GuestRequest) {
    const { kernel, initramfs, script, out, commands = [], devices = [], memory = "2G", cpus = 2 } = request;
    const { machine = "pc", qmp } = request;
    this.consoleFile = join(out, "console.log");
    const append = [
      "console=ttyS0",
      "quiet",
      "panic=1",
      "random.trust_cpu=on",
      "mitigations=off",
      // On a busy host the kernel measures the speed of the TSC wrongly, and its clock runs fast or slow.
      "tsc=unstable",
      "clocksource=hpet",
      // A busy host makes the check of the timer fail, and the kernel panic.
      "no_timer_check",
      `guest.script=${relative(root, script)}`,
      `guest.node=${process.execPath}`,
      ...commands,
    ];
    const share = (tag: string, path: string, readOnly: boolean): string =>
      `local,path=${path.replaceAll(",", ",,")},mount_tag=${tag},security_model=none,multidevs=remap${readOnly ? ",readonly=on" : ""}`;
    const args = [
      ...["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", machine, "-smp", `${cpus}`, "-m", memory],
      ...["-display", "none", "-no-user-config", "-nodefaults", "-serial", "stdio", "-no-reboot"],
      ...["-kernel", kernel.image, "-initrd", initramfs, "-append", append.join(" ")],
      ...["-virtfs", share("root", "/", true), "-virtfs", share("project", root, true)],
      ...["-virtfs", share("out", out, false), "-device", "isa-debug-exit,iobase=0x501,iosize=2"],
      ...["-device", "virtio-rng-pci"],
      ...(qmp === undefined ? [] : ["-qmp", `unix:${qmp},server=on,wait=off`]),
      ...devices,
    ];
    const started = Date.now();
    this.child = spawn(QEMU, args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#qmp = qmp;
    const log = createWriteStream(this.consoleFile);
    for (const stream of [this.child.stdout, this.child.stderr])
      (stream as Readable).pipe(log, { end: false });
    this.#ended = new Promise((done, failed) => {
      this.child.on("error", failed);
      this.child.on("close", (status, signal) => {
        log.end(() => done({ status, signal, code: exitCodeOf(status), ms: Date.now() - started }));
      });
    });
  }

  /** Its end; after `limitMs` it is killed. */
  async end(limitMs: number): Promise<GuestEnd> {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      this.kill();
    }, limitMs);
    const ended = await this.#ended;
    clearTimeout(timer);
    return { ...ended, late };
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }

  /** One QMP command on a connection of its own. */
  async command(name: string): Promise<void> {
    if (this.#qmp === undefined) throw new Error("this guest has no QMP");
    const socket = createConnection(this.#qmp);
    const lines = createInterface({ input: socket });
    try {
      const answers = lines[Symbol.asyncIterator]();
      await answers.next(); // the greeting
      for (const execute of ["qmp_capabilities", name]) {
        socket.write(`${JSON.stringify({ execute })}\n`);
        const { value } = await answers.next();
        if (value === undefined) return; // the machine is gone, as it was told
      }
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== "EPIPE" && code !== "ECONNRESET") throw error;
    } finally {
      socket.destroy();
    }
  }

  /** The end of what it wrote to its console. */
  console(lines = 60): string {
    if (!existsSync(this.consoleFile)) return "";
    return readFileSync(this.consoleFile, "utf8").replaceAll("\r", "").split("\n").slice(-lines).join("\n");
  }
}
