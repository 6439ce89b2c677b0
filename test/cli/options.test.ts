import { describe, expect, test } from "vitest";
import { Failure } from "../../src/daemon/failure.ts";
import { mountWords, parseMountOptions } from "../../src/daemon/options.ts";

const failureOf = (...lists: string[]): Failure => {
  try {
    parseMountOptions(lists, true);
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  throw new Error(`'${lists.join(" ")}' was accepted`);
};

describe("mount options", () => {
  test("root shares a mount with all users, an ordinary user does not", () => {
    expect(mountWords(parseMountOptions([], true), true)).toContain("allow_other");
    expect(mountWords(parseMountOptions([], false), false)).not.toContain("allow_other");
    expect(mountWords(parseMountOptions(["allow_other"], false), false)).toContain("allow_other");
  });

  test("the kernel always checks permissions", () => {
    expect(mountWords(parseMountOptions([], true), true)).toContain("default_permissions");
    expect(mountWords(parseMountOptions(["default_permissions"], false), false)).toContain(
      "default_permissions",
    );
  });

  test("setuid programs and device files are off unless asked for", () => {
    expect(mountWords(parseMountOptions([], true), true)).toEqual(
      expect.arrayContaining(["nosuid", "nodev"]),
    );
    const words = mountWords(parseMountOptions(["suid,dev"], true), true);
    expect(words).not.toContain("nosuid");
    expect(words).not.toContain("nodev");
  });

  test("an ordinary user is refused what fusermount3 would leave out without a word", () => {
    for (const list of ["suid", "dev", "nosuid,suid"])
      expect(() => parseMountOptions([list], false)).toThrow(/only root/);
    expect(mountWords(parseMountOptions(["suid,nosuid,dev,nodev"], false), false)).toContain("nosuid");
  });

  test("a blank beside a comma is no part of an option", () => {
    expect(parseMountOptions(["noatime, ro"], true)).toEqual(parseMountOptions(["noatime,ro"], true));
  });

  test("the last of two contradicting options wins, also over several lists", () => {
    expect(parseMountOptions(["ro,rw"], true).readOnly).toBe(false);
    expect(parseMountOptions(["rw", "ro"], true).readOnly).toBe(true);
    expect(parseMountOptions(["noatime,strictatime"], true).atime).toBe("strictatime");
    expect([...parseMountOptions(["noexec,exec,sync,async"], true).restrictions]).toEqual([
      "nosuid",
      "nodev",
    ]);
  });

  test("options of ours have typed values", () => {
    const options = parseMountOptions(
      ["direct=breakable,break_time=3,max_leases=7,max_leased=256M,assume_pmem,discard,discard_delay=7"],
      true,
    );
    expect(options).toMatchObject({
      direct: "breakable",
      breakTimeSeconds: 3,
      maxLeases: 7,
      maxLeasedBytes: 256 * 1024 ** 2,
      assumePmem: true,
      discard: true,
      discardDelaySeconds: 7,
    });
    expect(parseMountOptions(["discard,nodiscard"], true)).toMatchObject({ discard: false });
    expect(parseMountOptions(["log=syslog,log=none"], true).log).toEqual({ kind: "none" });
    expect(parseMountOptions(["log=/var/log/x"], true).log).toEqual({ kind: "file", path: "/var/log/x" });
  });

  test("what only fstab and mount(8) care about is passed over", () => {
    expect(parseMountOptions(["defaults,noauto,nofail,_netdev,x-systemd.automount"], true)).toEqual(
      parseMountOptions([], true),
    );
  });

  test.each([
    ["bogus", "bogus"],
    ["ro,bogus=1", "bogus=1"],
    ["direct=sometimes", "seal, breakable or off"],
    ["direct", "needs a value"],
    ["discard_delay=0", "whole seconds"],
    ["break_time=-1", "whole seconds"],
    ["break_time=1.5", "whole seconds"],
    ["max_leases=many", "whole number"],
    ["max_leased=1GB", "a size"],
    ["log=relative", "none, syslog or"],
    ["ro=1", "takes no value"],
    ["", "empty"],
    ["ro,,noatime", "empty"],
    ["constructor", "unknown"],
    ["fsname=x", "unknown"],
  ])("'%s' is wrong usage and named", (list, named) => {
    const failure = failureOf(list);
    expect(failure.exitCode).toBe(2);
    expect(failure.message).toContain(named);
  });

  test("fusermount3 is never given a word that it does not know", () => {
    const words = mountWords(
      parseMountOptions(["strictatime,nodiratime,noexec,sync,dirsync,ro"], false),
      false,
    );
    expect(words).not.toContain("strictatime");
    expect(mountWords(parseMountOptions(["strictatime"], true), true)).toContain("strictatime");
  });
});
