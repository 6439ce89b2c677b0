/**
 * Compiles the declarations of src/fuse/kernel.ts against the system's <linux/fuse.h>: sizes, offsets, widths, constants.
 * What is newer than that header is left out by its own minor version, so that a newer header checks more.
 * MAPDIRECT_FUSE_HEADER names another copy of the header to check against.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import * as kernel from "../../src/fuse/kernel.ts";

const header = process.env.MAPDIRECT_FUSE_HEADER ?? "/usr/include/linux/fuse.h";
const compiler = spawnSync("cc", ["--version"]).status === 0;
const obstacle = !existsSync(header) ? `no ${header}` : !compiler ? "no C compiler" : "";

const attrMembers = new Set(kernel.FuseAttr.fields.map((each) => each.name));
const entryMembers = new Set([
  "nodeid",
  "generation",
  "entryValid",
  "attrValid",
  "entryValidNsec",
  "attrValidNsec",
]);
const lockMembers = new Set(["start", "end", "type", "pid"]);

const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** Where our flat declarations stand for nested structs, or for names that C spells differently. */
function member(structName: string, field: string): string {
  switch (structName) {
    case "fuse_entry_out":
    case "fuse_attr_out":
      return attrMembers.has(field) && !entryMembers.has(field) ? `attr.${snake(field)}` : snake(field);
    case "fuse_direntplus":
      if (field.startsWith("dirent")) return `dirent.${snake(field.slice(6)).slice(1)}`;
      return `entry_out.${entryMembers.has(field) ? "" : "attr."}${snake(field)}`;
    case "fuse_lk_in":
    case "fuse_lk_out":
      return lockMembers.has(field) ? `lk.${field}` : snake(field);
    case "fuse_statfs_out":
      return `st.${snake(field)}`;
    case "fuse_statx_in":
      return field === "padding" ? "reserved" : snake(field);
    case "fuse_statx_out": {
      if (["attrValid", "attrValidNsec", "flags", "spare"].includes(field)) return snake(field);
      const time = /^([abcm]time)(Sec|Nsec|Padding)$/.exec(field);
      if (time)
        return `stat.${time[1]}.${{ Sec: "tv_sec", Nsec: "tv_nsec", Padding: "__reserved" }[time[2]!]}`;
      return `stat.${field.startsWith("spare") ? `__${field}` : snake(field)}`;
    }
    default:
      return snake(field);
  }
}

/** The minor version that brought a struct or a member; older ones are in every header from 7.38 on. */
const since: Record<string, number> = {
  fuse_statx_in: 39,
  fuse_statx_out: 39,
  fuse_backing_map: 40,
  fuse_copy_file_range_out: 45,
  "fuse_open_out.backingId": 40,
  "fuse_init_out.maxStackDepth": 40,
  "fuse_init_out.requestTimeout": 43,
  "fuse_init_out.unused": 43,
  FUSE_STATX: 39,
  FUSE_COPY_FILE_RANGE_64: 45,
  FUSE_CREATE_SUPP_GROUP: 39,
  FUSE_EXT_GROUPS: 39,
  FUSE_DIRECT_IO_ALLOW_MMAP: 39,
  FUSE_PASSTHROUGH: 40,
  FUSE_NO_EXPORT_SUPPORT: 40,
  FUSE_HAS_RESEND: 40,
  FUSE_ALLOW_IDMAP: 41,
  FUSE_OVER_IO_URING: 42,
  FUSE_REQUEST_TIMEOUT: 43,
  FUSE_HAS_IO_URING_BUFPOOL: 46,
  FOPEN_PASSTHROUGH: 40,
  FOPEN_IO_URING_ZERO_COPY: 46,
  FUSE_NOTIFY_RESEND: 40,
  FUSE_NOTIFY_INC_EPOCH: 44,
  FUSE_NOTIFY_PRUNE: 45,
  FUSE_UNIQUE_RESEND: 40,
  FUSE_INVALID_UIDGID: 41,
  FUSE_DEV_IOC_BACKING_OPEN: 40,
  FUSE_DEV_IOC_BACKING_CLOSE: 40,
  FUSE_DEV_IOC_SYNC_INIT: 45,
};

const guarded = (minor: number | undefined, line: string): string =>
  minor === undefined ? line : `#if FUSE_KERNEL_MINOR_VERSION >= ${minor}\n${line}\n#endif`;

const prefixed = (prefix: string, values: Record<string, number>): [string, string][] =>
  Object.entries(values).map(([name, value]) => [`${prefix}${name}`, `${value}ULL`]);

const constants: [string, string][] = [
  ...prefixed("FUSE_", kernel.Opcode),
  ...Object.entries(kernel.InitBit).map(([name, bit]): [string, string] => [
    `FUSE_${name}`,
    `(1ULL << ${bit})`,
  ]),
  ...prefixed("FATTR_", kernel.Fattr),
  ...prefixed("FOPEN_", kernel.Fopen),
  ...prefixed("FUSE_OPEN_", kernel.OpenInFlag),
  ...prefixed("FUSE_RELEASE_", kernel.ReleaseFlag),
  ...prefixed("FUSE_GETATTR_", kernel.GetattrFlag),
  ...prefixed("FUSE_LK_", kernel.LkFlag),
  ...prefixed("FUSE_WRITE_", kernel.WriteFlag),
  ...prefixed("FUSE_READ_", kernel.ReadFlag),
  ...prefixed("FUSE_IOCTL_", kernel.IoctlFlag).map(([name, value]): [string, string] => [
    name.replace("_BIT32", "_32BIT"),
    value,
  ]),
  ...prefixed("FUSE_POLL_", kernel.PollFlag),
  ...prefixed("FUSE_FSYNC_", kernel.FsyncFlag),
  ...prefixed("FUSE_ATTR_", kernel.AttrFlag),
  ...prefixed("FUSE_SETXATTR_", kernel.SetxattrFlag),
  ...prefixed("FUSE_", kernel.InvalEntryFlag),
  ["FUSE_MAX_NR_SECCTX", `${kernel.ExtType.MAX_NR_SECCTX}`],
  ["FUSE_EXT_GROUPS", `${kernel.ExtType.GROUPS}`],
  ...prefixed("FUSE_NOTIFY_", kernel.NotifyCode),
  ...prefixed("RENAME_", kernel.RenameFlag),
  // FALLOC_FL_WRITE_ZEROES is from Linux 6.17; the header of the build machine may be older.
  ...prefixed("FALLOC_FL_", kernel.FallocMode).filter(([name]) => name !== "FALLOC_FL_WRITE_ZEROES"),
  ...prefixed("SEEK_", kernel.Seek),
  ...prefixed("XATTR_", kernel.XattrFlag),
  ["F_RDLCK", `${kernel.LockType.READ}`],
  ["F_WRLCK", `${kernel.LockType.WRITE}`],
  ["F_UNLCK", `${kernel.LockType.UNLOCK}`],
  ...prefixed("POLL", kernel.PollEvent),
  ...Object.entries(kernel.OpenFlag)
    .filter(([name]) => name !== "EXEC")
    .map(([name, value]): [string, string] => [`O_${name}`, `${value}`]),
  ["FUSE_KERNEL_VERSION", `${kernel.FUSE_MAJOR}`],
  ["FUSE_ROOT_ID", `${kernel.FUSE_ROOT_ID}`],
  ["FUSE_MIN_READ_BUFFER", `${kernel.FUSE_MIN_READ_BUFFER}`],
  ["FUSE_IOCTL_MAX_IOV", `${kernel.FUSE_IOCTL_MAX_IOV}`],
  ["FUSE_COMPAT_SETXATTR_IN_SIZE", `${kernel.SETXATTR_IN_COMPAT_BYTES}`],
  ["FUSE_UNIQUE_RESEND", `${kernel.FUSE_UNIQUE_RESEND}ULL`],
  ["FUSE_INVALID_UIDGID", `${kernel.FUSE_INVALID_UIDGID}ULL`],
  ...prefixed("FUSE_DEV_IOC_", kernel.DeviceIoctl),
  ["NAME_MAX", `${kernel.NAME_MAX_BYTES}`],
  ["PATH_MAX", `${kernel.TARGET_MAX_BYTES + 1}`],
];

function checkProgram(): string {
  const lines = [
    "#define _GNU_SOURCE",
    "#include <stddef.h>",
    "#include <stdint.h>",
    "#include <fcntl.h>",
    "#include <poll.h>",
    "#include <stdio.h>",
    "#include <unistd.h>",
    "#include <sys/ioctl.h>",
    "#include <linux/limits.h>",
    "#include <linux/falloc.h>",
    "#include <linux/xattr.h>",
    `#include "${header}"`,
  ];
  for (const declared of kernel.kernelStructs) {
    const name = declared.name;
    const asserts = [`_Static_assert(sizeof(struct ${name}) == ${declared.size}, "${name}: size");`];
    for (const part of declared.fields) {
      const inC = member(name, part.name);
      const label = `${name}.${inC}`;
      asserts.push(
        guarded(
          since[`${name}.${part.name}`],
          `_Static_assert(offsetof(struct ${name}, ${inC}) == ${part.offset}, "${label}: offset");\n` +
            `_Static_assert(sizeof(((struct ${name} *)0)->${inC}) == ${part.size}, "${label}: size");`,
        ),
      );
    }
    lines.push(guarded(since[name], asserts.join("\n")));
  }
  for (const [name, value] of constants) {
    // (1 << 31) is a negative int in C; as uint32_t it is the bit.
    const inC = name === "FUSE_INIT_RESERVED" ? `(uint32_t)${name}` : name;
    lines.push(guarded(since[name], `_Static_assert((${inC}) == ${value}, "${name}");`));
  }
  return `${lines.join("\n")}\n`;
}

function compile(program: string): { status: number | null; errors: string } {
  const directory = mkdtempSync(join(tmpdir(), "mapdirect-wire-"));
  try {
    const file = join(directory, "check.c");
    writeFileSync(file, program);
    const run = spawnSync("cc", ["-std=gnu11", "-fsyntax-only", file], { encoding: "utf8" });
    return { status: run.status, errors: run.stderr };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

describe.skipIf(obstacle !== "")(
  `the system's linux/fuse.h${obstacle === "" ? "" : ` (skipped: ${obstacle})`}`,
  () => {
    test("agrees with every struct and constant that it knows", () => {
      const { status, errors } = compile(checkProgram());
      expect(errors).toBe("");
      expect(status).toBe(0);
    });

    test("would not agree with a member at another offset: the check checks", () => {
      const wrong = checkProgram().replace(
        "offsetof(struct fuse_setattr_in, mode) == 68",
        "offsetof(struct fuse_setattr_in, mode) == 72",
      );
      const { status, errors } = compile(wrong);
      expect(status).not.toBe(0);
      expect(errors).toContain("fuse_setattr_in.mode: offset");
    });
  },
);

test("every struct is in the list that the check walks, once", () => {
  const declared = Object.values(kernel).filter(
    (each) => typeof each === "object" && "decode" in each && "fields" in each,
  );
  expect(declared.length).toBe(kernel.kernelStructs.length);
  expect(new Set(kernel.kernelStructs).size).toBe(kernel.kernelStructs.length);
  for (const each of declared) expect(kernel.kernelStructs).toContain(each);
});
