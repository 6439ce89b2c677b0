/**
 * The /dev/fuse channel: over a socket pair for its framing and its place in the event loop, and over a real mount
 * with the few replies that the kernel needs.
 */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { open as openFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Errno } from "../../src/base/errno.ts";
import { addon, type Channel, packageRoot } from "../../src/region/addon.ts";
import { createRegionFile } from "../../src/region/create.ts";
import { openFuseMount, splitMountOptions, unmountFuse } from "../../src/region/fusemount.ts";
import type { MappedRegion } from "../../src/region/native-region.ts";
import { openRegion } from "../../src/region/open.ts";
import { until as within } from "../support/until.ts";

const SIZE = 8 << 20;
let directory: string;
let region: MappedRegion;
const cleanups: (() => unknown)[] = [];

beforeEach(() => {
  directory = mkdtempSync("/dev/shm/mapdirect-channel-");
  createRegionFile(join(directory, "region"), SIZE);
  region = openRegion(join(directory, "region"), { lock: false });
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  region.close();
  rmSync(directory, { recursive: true, force: true });
});

interface Frame {
  length: number;
  error: number;
  unique: bigint;
  payload: Buffer;
}

/** The numbers of two connected sockets. */
function socketPair(): [number, number] {
  const [one, other] = addon().socketpair();
  return [one.take(), other.take()];
}

/** A channel on one end of a socket pair; the other end plays the kernel. */
function pair(
  onRequest: (text: string, channel: Channel) => unknown,
  onEnd: (errno: number) => void = () => {},
  busyPollMicros = 50,
) {
  const [server, kernel] = socketPair();
  const buffer = new Uint8Array(4096);
  const channel: Channel = addon().openChannel(
    server,
    buffer,
    { busyPollMicros, batch: 8 },
    (length) => onRequest(Buffer.from(buffer.subarray(0, length)).toString(), channel),
    onEnd,
  );
  let kernelOpen = true;
  const hangUp = () => {
    if (kernelOpen) closeSync(kernel);
    kernelOpen = false;
  };
  cleanups.push(() => channel.close(), hangUp);
  const receive = (bytes: number): Frame => {
    const frame = Buffer.alloc(bytes + 16);
    for (let done = 0; done < frame.length; ) {
      const count = readSync(kernel, frame, done, frame.length - done, null);
      if (count === 0) throw new Error("the channel hung up");
      done += count;
    }
    return {
      length: frame.readUInt32LE(0),
      error: frame.readInt32LE(4),
      unique: frame.readBigUInt64LE(8),
      payload: frame.subarray(16),
    };
  };
  return { channel, receive, hangUp, send: (text: string) => writeSync(kernel, text) };
}

const WAIT_MS = 4000;
const until = (condition: () => boolean): Promise<void> => within(condition, WAIT_MS);

describe("a channel over a socket pair", () => {
  test("hands each request over in the buffer and counts it", async () => {
    const got: string[] = [];
    const { channel, send } = pair((text) => got.push(text));
    send("one");
    await until(() => got.length === 1);
    send("two");
    await until(() => got.length === 2);
    expect(got).toEqual(["one", "two"]);
    expect(channel.counters.requests).toBe(2);
    expect(channel.counters.wakeups).toBeGreaterThan(0);
  });

  test("promises that somebody waits for run before it looks for more", async () => {
    const wakeups: number[] = [];
    const { channel, send } = pair(
      (text, channel) => {
        wakeups.push(channel.counters.wakeups);
        if (text !== "question") return false;
        // Whoever asked goes on when it has its answer, which takes a turn of the promises.
        void Promise.resolve().then(() => send("next"));
        return true;
      },
      undefined,
      200_000,
    );
    // Gaps that a window would have caught open one.
    for (let sent = 1; sent <= 2; sent++) {
      send("hello");
      await until(() => wakeups.length === sent);
    }
    send("question");
    await until(() => wakeups.length === 4);
    expect(wakeups[3]).toBe(wakeups[2]);
    expect(channel.counters.pollHits).toBeGreaterThan(0);
  });

  test("frames replies and errors as the kernel wants them", () => {
    const { channel, receive } = pair(() => {});
    const payload = Buffer.from("xxpayload");
    expect(channel.reply(0xffff_ffff_ffff_fffen, 0, payload, 2, 7)).toBe(0);
    expect(receive(7)).toEqual({
      length: 23,
      error: 0,
      unique: 0xffff_ffff_ffff_fffen,
      payload: Buffer.from("payload"),
    });
    expect(channel.reply(5n, Errno.ETXTBSY, payload, 0, 0)).toBe(0);
    expect(receive(0)).toMatchObject({ length: 16, error: -Errno.ETXTBSY, unique: 5n });
    expect(() => channel.reply(5n, 0, payload, 5, 5)).toThrow(/slice/);
  });

  test("answers from the region, with zeros for holes and any number of pieces", () => {
    const { channel, receive } = pair(() => {});
    const bytes = Buffer.from("abcdefghijklmnopqrstuvwxyz");
    region.write(4096, bytes, 0, 26);
    const send = (pieces: number[]) =>
      channel.replyRegion(9n, region.native, Float64Array.from(pieces), pieces.length / 2);
    expect(send([4096, 3, -1, 4, 4099, 2, 4101, 2, 0, 1])).toBe(0);
    expect(receive(12)).toMatchObject({ length: 28, error: 0, payload: Buffer.from("abc\0\0\0\0defg\0") });
    expect(send([])).toBe(0);
    expect(receive(0).length).toBe(16);
    // More fragments than one writev takes: every other byte, backwards.
    const many = Array.from({ length: 3000 }, (_, i) =>
      i % 5 === 4 ? [-1, 1] : [4096 + 25 - (i % 26), 1],
    ).flat();
    expect(send(many)).toBe(0);
    const expected = Buffer.from(
      Array.from({ length: 3000 }, (_, i) => (i % 5 === 4 ? 0 : bytes[25 - (i % 26)]!)),
    );
    expect(receive(3000).payload.equals(expected)).toBe(true);
    expect(() => send([SIZE - 1, 2])).toThrow(/outside/);
    expect(() => send([Number.NaN, 2])).toThrow(/piece 0/);
    expect(() => channel.replyRegion(9n, {} as never, new Float64Array(2), 1)).toThrow(/region/);
  });

  test("a region cut short beneath the reply is EIO to the caller, in one writev or gathered", () => {
    const { channel, receive } = pair(() => {});
    truncateSync(join(directory, "region"), 4096);
    expect(channel.replyRegion(3n, region.native, Float64Array.of(8192, 4096), 1)).toBe(Errno.EIO);
    expect(receive(0)).toMatchObject({ length: 16, error: -Errno.EIO, unique: 3n });
    const many = Array.from({ length: 1500 }, (_, i) => [8192 + 2 * i, 1]).flat();
    expect(channel.replyRegion(4n, region.native, Float64Array.from(many), 1500)).toBe(Errno.EIO);
    expect(receive(0)).toMatchObject({ length: 16, error: -Errno.EIO, unique: 4n });
  });

  test("notifications keep their order, and poll wake-ups go out at once", async () => {
    const { channel, receive } = pair(() => {});
    const sent = [2, 3, 2].map((code, i) => channel.notify(code, new Uint8Array([i])));
    expect(await Promise.all(sent)).toEqual([0, 0, 0]);
    for (const [i, code] of [2, 3, 2].entries()) {
      expect(receive(1)).toMatchObject({ error: code, unique: 0n, payload: Buffer.from([i]) });
    }
    const poll = channel.notify(1, new Uint8Array(8));
    expect(receive(8)).toMatchObject({ error: 1 });
    expect(await poll).toBe(0);
  });

  test("closing from inside a request is safe, settles notifications and ends everything", async () => {
    let calls = 0;
    let pending: Promise<number> | undefined;
    const { send, channel } = pair((_, open) => {
      calls++;
      pending = open.notify(3, new Uint8Array(8));
      open.close();
      open.close();
    });
    send("x");
    await until(() => calls === 1);
    expect([0, Errno.ENODEV]).toContain(await pending);
    expect(channel.reply(1n, 0, new Uint8Array(0), 0, 0)).toBe(Errno.ENODEV);
    expect(channel.replyRegion(1n, region.native, new Float64Array(2), 1)).toBe(Errno.ENODEV);
    expect(await channel.notify(3, new Uint8Array(8))).toBe(Errno.ENODEV);
    expect(() => send("y")).toThrow(/EPIPE/);
    expect(calls).toBe(1);
  });

  test("the other end hanging up is the end, once", async () => {
    const ends: number[] = [];
    const { hangUp } = pair(
      () => {},
      (errno) => ends.push(errno),
    );
    hangUp();
    await until(() => ends.length > 0);
    await delay(20);
    expect(ends).toEqual([0]);
  });
});

describe("a channel in a process of its own", () => {
  const run = (body: string) => {
    const script = `
      const fs = require("node:fs");
      const addon = require(${JSON.stringify(join(packageRoot, "build/Release/mapdirect.node"))});
      const [server, kernel] = addon.socketpair().map((end) => end.take());
      const buffer = new Uint8Array(4096);
      const watch = (onRequest) =>
        addon.openChannel(server, buffer, { busyPollMicros: 0, batch: 8 }, onRequest, () => {});
      ${body}`;
    const ended = spawnSync(process.execPath, ["-e", script], { encoding: "utf8", timeout: 20_000 });
    return { status: ended.status, signal: ended.signal, out: ended.stdout, err: ended.stderr };
  };

  test("promises and ticks of a wake-up's requests run when it has read them all, in order", () => {
    const ended = run(`
      const log = [];
      const channel = watch((length) => {
        const name = String.fromCharCode(buffer[0]);
        if (name === "z") { channel.close(); setImmediate(() => console.log(log.join(" "))); return; }
        log.push(name);
        process.nextTick(() => log.push(name + "-tick"));
        Promise.resolve().then(() => log.push(name + "-promise"));
        fs.writeSync(kernel, name === "a" ? "b" : "z");
      });
      fs.writeSync(kernel, "a");`);
    expect(ended).toMatchObject({ status: 0, out: "a b a-tick b-tick a-promise b-promise\n" });
  });

  test("what a request handler throws is an uncaught exception, and serving goes on when that is handled", () => {
    const thrown = run(`watch(() => { throw new Error("from the handler"); }); fs.writeSync(kernel, "x");`);
    expect(thrown.status).toBe(1);
    expect(thrown.err).toContain("from the handler");
    const handled = run(`
      process.on("uncaughtException", (error) => { console.log(error.message); fs.writeSync(kernel, "y"); });
      let calls = 0;
      const channel = watch(() => { if (++calls === 1) throw new Error("first"); channel.close(); });
      fs.writeSync(kernel, "x");`);
    expect(handled).toMatchObject({ status: 0, out: "first\n" });
  });

  test("what a getter of the options throws is what is thrown", () => {
    const ended = run(`
      const thrown = new Error("from a getter");
      const options = { get queues() { throw thrown; }, get busyPollMicros() { throw thrown; } };
      for (const call of [() => addon.openRing(options), () => addon.openChannel(server, buffer, options, () => {}, () => {})]) {
        try { call(); } catch (error) { console.log(error === thrown); }
      }`);
    expect(ended).toMatchObject({ status: 0, out: "true\ntrue\n", err: "" });
  });

  test("an open channel keeps the process alive, a closed one does not", () => {
    expect(
      run(`const c = watch(() => {}); setTimeout(() => { c.close(); console.log("end"); }, 50);`),
    ).toMatchObject({
      status: 0,
      out: "end\n",
    });
    expect(run(`const c = watch(() => {}); c.notify(3, buffer); c.close();`).status).toBe(0);
  });

  test("exiting with an open channel is clean, in the main thread and in a worker", () => {
    expect(run(`const c = watch(() => process.exit(7)); fs.writeSync(kernel, "x");`)).toMatchObject({
      status: 7,
      err: "",
    });
    const worker = run(`
      const { Worker } = require("node:worker_threads");
      const source = \`
        const addon = require(${JSON.stringify(join(packageRoot, "build/Release/mapdirect.node"))});
        const [a, b] = addon.socketpair().map((end) => end.take());
        const c = addon.openChannel(a, new Uint8Array(64), { busyPollMicros: 0, batch: 1 }, () => {}, () => {});
        c.notify(3, new Uint8Array(4)).then(() => require("node:worker_threads").parentPort.postMessage("up"));
      \`;
      const worker = new Worker(source, { eval: true });
      worker.on("message", () => worker.terminate().then(() => console.log("gone")));`);
    expect(worker).toMatchObject({ status: 0, out: "gone\n", err: "" });
  });

  test("channels and regions are collected when dropped", () => {
    const ended = run(`
      for (let i = 0; i < 200; i++) {
        const [a, b] = addon.socketpair().map((end) => end.take());
        addon.openChannel(a, new Uint8Array(64), { busyPollMicros: 0, batch: 1 }, () => {}, () => {}).close();
        fs.closeSync(b);
      }
      require("node:v8").setFlagsFromString("--expose-gc");
      require("node:vm").runInNewContext("gc")();
      setTimeout(() => console.log(fs.readdirSync("/proc/self/fd").length < 60), 10);`);
    expect(ended).toMatchObject({ status: 0, out: "true\n", err: "" });
  });
});

const noFuse = !existsSync("/dev/fuse") ? "no /dev/fuse" : process.geteuid?.() !== 0 ? "needs root" : null;

describe.skipIf(noFuse !== null)(`a real mount${noFuse === null ? "" : ` (skipped: ${noFuse})`}`, () => {
  const FILE_BYTES = 3 * 4096;

  /** The root, and in it one file `f`: a page of the region, a hole, and a page beyond. */
  async function mount(options: string[]) {
    const mountpoint = mkdtempSync(join(directory, "mnt-"));
    const source = join(directory, "region");
    const { device, unprivileged } = await openFuseMount({
      source,
      mountpoint,
      options,
      fsType: "fuse.mapdirect",
    });
    expect(unprivileged).toBe(false);
    const buffer = new Uint8Array(1 << 20);
    const view = new DataView(buffer.buffer);
    const ends: number[] = [];
    const out = new Uint8Array(256);
    const attributes = (node: bigint, at: number): Uint8Array => {
      const reply = new DataView(out.buffer);
      out.fill(0);
      reply.setBigUint64(at, node, true);
      reply.setBigUint64(at + 8, BigInt(node === 1n ? 0 : FILE_BYTES), true);
      reply.setUint32(at + 60, node === 1n ? 0o40755 : 0o100644, true);
      reply.setUint32(at + 64, 1, true);
      return out;
    };
    const channel = addon().openChannel(
      device,
      buffer,
      { busyPollMicros: 50, batch: 64 },
      () => {
        const opcode = view.getUint32(4, true);
        const unique = view.getBigUint64(8, true);
        const node = view.getBigUint64(16, true);
        const send = (length: number) => channel.reply(unique, 0, out, 0, length);
        switch (opcode) {
          case 26: {
            out.fill(0);
            const reply = new DataView(out.buffer);
            reply.setUint32(0, 7, true);
            reply.setUint32(4, 31, true);
            reply.setUint32(20, 65536, true);
            send(64);
            break;
          }
          case 1: {
            const name = Buffer.from(buffer.subarray(40, 42)).toString();
            if (name !== "f\0") {
              channel.reply(unique, Errno.ENOENT, out, 0, 0);
              break;
            }
            attributes(2n, 40);
            new DataView(out.buffer).setBigUint64(0, 2n, true);
            send(128);
            break;
          }
          case 3:
            attributes(node, 16);
            send(104);
            break;
          case 14:
            out.fill(0);
            out[8] = 1; // FOPEN_DIRECT_IO
            send(16);
            break;
          case 15:
            channel.replyRegion(unique, region.native, Float64Array.of(8192, 4096, -1, 4096, 65536, 4096), 3);
            break;
          case 2:
          case 42:
            break; // FORGET wants no answer
          case 18:
          case 25:
            channel.reply(unique, 0, out, 0, 0);
            break;
          default:
            channel.reply(unique, Errno.ENOSYS, out, 0, 0);
        }
      },
      (errno) => {
        ends.push(errno);
        channel.close();
      },
    );
    cleanups.push(async () => {
      await unmountFuse(mountpoint, { lazy: true }).catch(() => {});
      channel.close();
    });
    return { mountpoint, source, channel, ends };
  }

  test("appears with its type, source and flags, serves from the region, and ends when unmounted", async () => {
    const { mountpoint, source, channel, ends } = await mount(["default_permissions", "noatime", "nosuid"]);
    region.write(8192, Buffer.alloc(4096, "A"), 0, 4096);
    region.write(65536, Buffer.alloc(4096, "C"), 0, 4096);
    expect((await stat(mountpoint)).isDirectory()).toBe(true);
    const line = readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .find((candidate) => candidate.includes(` ${mountpoint} `));
    expect(line).toContain(` - fuse.mapdirect ${source} `);
    expect(line).toMatch(/ rw,nosuid,noatime /);

    const file = await openFile(join(mountpoint, "f"));
    const expected = Buffer.concat([Buffer.alloc(4096, "A"), Buffer.alloc(4096), Buffer.alloc(4096, "C")]);
    for (let round = 0; round < 200; round++) {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(FILE_BYTES), 0, FILE_BYTES, 0);
      expect(bytesRead).toBe(FILE_BYTES);
      expect(buffer.equals(expected)).toBe(true);
    }
    truncateSync(source, 16384);
    await expect(file.read(Buffer.alloc(FILE_BYTES), 0, FILE_BYTES, 0)).rejects.toThrow(/EIO/);
    await file.close();
    await expect(stat(join(mountpoint, "none"))).rejects.toThrow(/ENOENT/);

    expect(channel.counters.requests).toBeGreaterThan(200);
    // An entry that the kernel does not know.
    const entry = Buffer.alloc(18);
    entry.writeBigUInt64LE(1n, 0);
    entry.writeUInt32LE(1, 8);
    entry.write("q", 16);
    expect(await channel.notify(3, entry)).toBe(Errno.ENOENT);

    await unmountFuse(mountpoint);
    await until(() => ends.length > 0);
    expect(ends).toEqual([0]);
  });

  const helper = spawnSync("fusermount3", ["--version"]).status === 0 ? null : "no fusermount3";

  // The effective user alone changes, so that it can change back; the helper sees the real one.
  const asNobody = async <T>(body: () => Promise<T>): Promise<T> => {
    chmodSync(directory, 0o755);
    process.seteuid!(65534);
    try {
      return await body();
    } finally {
      process.seteuid!(0);
    }
  };

  test.skipIf(helper !== null)(
    `without root the helper mounts, hands the descriptor over, and unmounts`,
    async () => {
      const mountpoint = mkdtempSync(join(directory, "mnt-"));
      chmodSync(mountpoint, 0o777);
      const source = join(directory, "a,region\\x");
      cleanups.push(() => unmountFuse(mountpoint, { lazy: true }).catch(() => {}));
      const options = ["default_permissions", "nosuid", "max_read=65536"];
      const request = { source, mountpoint, options, fsType: "fuse.mapdirect" };
      const mounted = await asNobody(() => openFuseMount(request));
      expect(mounted.unprivileged).toBe(true);
      const line = readFileSync("/proc/self/mountinfo", "utf8")
        .split("\n")
        .find((candidate) => candidate.includes(` ${mountpoint} `));
      expect(line).toContain(` - fuse.mapdirect ${source.replace("\\", "\\134")} `);
      expect(line).toMatch(/nosuid.*max_read=65536/);

      const ends: number[] = [];
      const channel = addon().openChannel(
        mounted.device,
        new Uint8Array(1 << 17),
        { busyPollMicros: 0, batch: 1 },
        () => {},
        (errno) => ends.push(errno),
      );
      cleanups.push(() => channel.close());
      await asNobody(() => unmountFuse(mountpoint, { lazy: true }));
      await until(() => ends.length > 0);
      expect(ends).toEqual([0]);
      await expect(asNobody(() => unmountFuse(mountpoint))).rejects.toThrow(
        /fusermount3 ended with status 1/,
      );
    },
  );

  test("a missing helper is named, with the package that brings it", async () => {
    const mountpoint = mkdtempSync(join(directory, "mnt-"));
    const request = { source: "x", mountpoint, options: [], fsType: "fuse.mapdirect" };
    const path = process.env.PATH;
    process.env.PATH = directory;
    try {
      await expect(asNobody(() => openFuseMount(request))).rejects.toThrow(/apt-get install fuse3/);
    } finally {
      process.env.PATH = path;
    }
  });

  test("a mount in use is EBUSY, and what is no mount is EINVAL", async () => {
    const { mountpoint } = await mount([]);
    const file = await openFile(join(mountpoint, "f"));
    await expect(unmountFuse(mountpoint)).rejects.toMatchObject({ code: "EBUSY" });
    await file.close();
    await delay(20);
    await unmountFuse(mountpoint);
    await expect(unmountFuse(mountpoint)).rejects.toMatchObject({ code: "EINVAL" });
    const request = { source: "x", options: [], fsType: "fuse.mapdirect" };
    await expect(openFuseMount({ ...request, mountpoint: join(directory, "no") })).rejects.toThrow(
      /create it first/,
    );
    await expect(openFuseMount({ ...request, mountpoint, options: ["a,b"] })).rejects.toThrow(/commas/);
    await expect(openFuseMount({ ...request, mountpoint, options: ["nonsense"] })).rejects.toThrow(
      /nonsense/,
    );
  });
});

test("mount words are split into flags and options, the last word of a kind winning", () => {
  expect(splitMountOptions(["ro", "allow_other", "nosuid", "rw", "max_read=4096", "noatime"])).toEqual({
    flags: 2 | 1024,
    rest: ["allow_other", "max_read=4096"],
  });
  expect(splitMountOptions(["noatime", "relatime"]).flags).toBe(1 << 21);
});
