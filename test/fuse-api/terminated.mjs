/**
 * Terminates a worker thread while it mounts, at a moment of choice, for end.test.ts. Arguments: the moment, a directory.
 *
 * - "mounting": mount(2) is under way, and waits for the main thread, which serves the directory beneath
 * - "mounted": mount(2) has returned, and nobody serves it yet; "mounted by the helper": the same by fusermount3
 * - "serving itself": mount(2) waits for the worker, which serves the directory beneath
 *
 * Prints what of /dev/fuse is still open and what stat(1) says about the mount point.
 */
import { execFile } from "node:child_process";
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { mount } from "mapdirect/fuse";

const attributes = (ino) => ({ ino, mode: 0o040755 });
const options = { attributesTtlMs: 0, entryTtlMs: 0 };

/** Which step the worker has reached: it lists the mounts, mount(2), and lists them again. */
const shared = isMainThread ? new SharedArrayBuffer(4) : workerData.shared;
const listed = new Int32Array(shared);

/** A directory with the directory "sub", and what is to be done when mount(2) in the worker looks that up. */
function withSub(look) {
  return {
    async lookup({ name }) {
      if (name !== "sub") return null;
      if (Atomics.load(listed, 0) > 0) await look?.();
      return { nodeid: 2, attributes: attributes(2) };
    },
    getattr: ({ nodeid }) => attributes(nodeid),
  };
}

/** Counts the lists of mounts, and stays in the second. */
function followLists() {
  const { readFileSync } = fs;
  fs.readFileSync = (path, ...rest) => {
    if (path === "/proc/self/mountinfo" && Atomics.add(listed, 0, 1) === 1) {
      parentPort.postMessage("there");
      Atomics.wait(listed, 0, 2);
    }
    return readFileSync(path, ...rest);
  };
  syncBuiltinESMExports();
}

async function work({ moment, mountpoint }) {
  if (moment === "mounted by the helper") process.geteuid = () => 1;
  if (moment === "serving itself") {
    const look = () => new Promise(() => parentPort.postMessage("there"));
    await mount(withSub(look), mountpoint, options);
  }
  followLists();
  const inside = moment === "mounting" || moment === "serving itself";
  await mount(withSub(), inside ? `${mountpoint}/sub` : mountpoint, options);
}

const said = (path) =>
  new Promise((resolve) => {
    execFile("stat", ["-c", "%F", path], { timeout: 5000, killSignal: "SIGKILL" }, (_, out, err) =>
      resolve(`${out}${err}`.trim().split(": ").at(-1)),
    );
  });

function fuseDescriptors() {
  const links = fs.readdirSync("/proc/self/fd").flatMap((number) => {
    try {
      return [fs.readlinkSync(`/proc/self/fd/${number}`)];
    } catch {
      return []; // of the list itself
    }
  });
  return links.filter((link) => link === "/dev/fuse").length;
}

async function terminate(moment, mountpoint) {
  let there;
  const reached = new Promise((resolve) => {
    there = resolve;
  });
  let worker;
  let outer;
  if (moment === "mounting") {
    const look = async () => {
      there(worker.terminate());
      await new Promise((resolve) => setTimeout(resolve, 200));
    };
    outer = await mount(withSub(look), mountpoint, options);
  }
  worker = new Worker(new URL(import.meta.url), { workerData: { moment, mountpoint, shared } });
  worker.on("error", (error) => console.log(error));
  worker.on("message", there);
  await reached;
  await worker.terminate();
  if (outer !== undefined) {
    console.log(await said(`${mountpoint}/sub`));
    await outer.unmount();
  }
  console.log(fuseDescriptors(), await said(mountpoint));
}

if (isMainThread) await terminate(process.argv[2], process.argv[3]);
else await work(workerData);
