import { statSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { isRunning, lockHolder, parseMountInfo } from "../../src/daemon/mounts.ts";

describe("what the kernel says about mounts", () => {
  test("a line of mountinfo is taken apart, with its octal escapes and any number of optional fields", () => {
    const text = [
      "36 35 0:52 / /mnt/a\\040b rw,relatime shared:1 master:2 - fuse.mapdirect /srv/my\\134region rw,user_id=0",
      "37 35 8:1 / /boot ro - ext4 /dev/sda1 ro",
      "",
    ].join("\n");
    expect(parseMountInfo(text)).toEqual([
      {
        id: 36,
        device: "0:52",
        mountpoint: "/mnt/a b",
        options: "rw,relatime",
        fsType: "fuse.mapdirect",
        source: "/srv/my\\region",
      },
      { id: 37, device: "8:1", mountpoint: "/boot", options: "ro", fsType: "ext4", source: "/dev/sda1" },
    ]);
  });

  test("the holder of a lock is found by device and inode", () => {
    const { dev, ino } = statSync("/proc/self/exe");
    const hex = (value: number): string => value.toString(16).padStart(2, "0");
    const device = `${hex(Math.floor(dev / 256) % 4096)}:${hex((dev % 256) + Math.floor(dev / 1_048_576) * 256)}`;
    const locks = `1: POSIX  ADVISORY  WRITE 7 ${device}:${ino} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 ${device}:${ino} 0 EOF\n`;
    expect(lockHolder("/proc/self/exe", locks)).toBe(4711);
    expect(lockHolder("/proc/self/exe", "")).toBeUndefined();
    expect(lockHolder("/no/such/file", locks)).toBeUndefined();
  });

  test("a process that runs is told from one that does not", () => {
    expect(isRunning(process.pid)).toBe(true);
    expect(isRunning(2 ** 22 + 1)).toBe(false);
  });
});
