/**
 * What is durable when its call returns: the daemon is killed right afterwards, and the machine has been started anew, so that
 * recovery takes nothing for durable that no sync has covered (the region is one of page granularity).
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { lookup } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { missing } from "../support/run.ts";
import { onAnotherBoot } from "../support/volume.ts";

/** As a power cut leaves it at worst. */
async function afterPowerCut(mount: TestMount): Promise<Store> {
  await mount.kill9();
  const image = onAnotherBoot(Uint8Array.from(readFileSync(mount.region)));
  return Store.open(MemoryRegion.fromImage(image, { granularity: "page" }), { readOnly: true });
}

const lacking = missing("python3");
const python = (text: string, ...words: string[]): void => {
  execFileSync("python3", ["-S", "-c", `import os, sys, ctypes\npath = sys.argv[1]\n${text}`, ...words]);
};

const names: [string, string, (store: Store) => void][] = [
  ["a new file", `open(path + "/new", "x").close()`, (store) => lookup(store, store.root, "new")],
  ["a directory", `os.mkdir(path + "/new")`, (store) => lookup(store, store.root, "new")],
  ["a symbolic link", `os.symlink("to", path + "/new")`, (store) => lookup(store, store.root, "new")],
  ["a link", `os.link(path + "/there", path + "/new")`, (store) => lookup(store, store.root, "new")],
  ["a rename", `os.rename(path + "/there", path + "/new")`, (store) => lookup(store, store.root, "new")],
  [
    "an unlink",
    `os.unlink(path + "/there")`,
    (store) => expect([...(store.root.directory?.names.keys() ?? [])]).not.toContain("there"),
  ],
];
const others: [string, string, (store: Store) => void][] = [
  [
    "a chmod",
    `os.chmod(path + "/there", 0o611)`,
    (store) => expect(lookup(store, store.root, "there").mode & 0o777).toBe(0o611),
  ],
  [
    "an attribute",
    `os.setxattr(path + "/there", "user.a", b"v")`,
    (store) => expect(lookup(store, store.root, "there").xattrs?.has("user.a")).toBe(true),
  ],
  [
    "a truncate",
    `os.truncate(path + "/there", 3)`,
    (store) => expect(lookup(store, store.root, "there").size).toBe(3n),
  ],
  [
    "a write",
    `f = open(path + "/there", "r+b", buffering=0); f.write(b"longer than before")`,
    (store) => expect(lookup(store, store.root, "there").size).toBe(18n),
  ],
];
const descriptors: [string, string, (store: Store) => void][] = [
  [
    "a write",
    `os.write(os.open(path + "/there", os.O_WRONLY | os.O_DSYNC), b"longer than before")`,
    (store) => expect(lookup(store, store.root, "there").size).toBe(18n),
  ],
  [
    "a write with RWF_DSYNC",
    `os.pwritev(os.open(path + "/there", os.O_WRONLY), [b"longer than before"], 0, os.RWF_DSYNC)`,
    (store) => expect(lookup(store, store.root, "there").size).toBe(18n),
  ],
  [
    "fallocate",
    `os.posix_fallocate(os.open(path + "/there", os.O_WRONLY | os.O_SYNC), 0, 8192)`,
    (store) => expect(lookup(store, store.root, "there").size).toBe(8192n),
  ],
];

describe.skipIf(lacking !== undefined)("what is synchronous survives a power cut", () => {
  for (const [how, options, cases] of [
    ["dirsync", "dirsync", names],
    ["sync", "sync", [...names, ...others]],
    ["O_SYNC, O_DSYNC or RWF_DSYNC", "defaults", descriptors],
  ] as const) {
    for (const [what, text, look] of cases)
      test(`with ${how}: ${what}`, async () => {
        await withMount({ sizeBytes: 16 << 20, options }, async (mount) => {
          python(
            `f = open(path + "/there", "wb"); f.write(b"content"); f.flush(); os.fsync(f.fileno())`,
            mount.path,
          );
          python(text, mount.path);
          look(await afterPowerCut(mount));
        });
      });
  }
});
