/** clone: a second file with the same contents in the same blocks. */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, statSync, unlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { Command } from "commander";
import { Errno } from "../../base/errno.ts";
import { cloneFile, withFile } from "../../daemon/client.ts";
import { errnoOf, Failure, reason } from "../../daemon/failure.ts";

export function cloneCommand(): Command {
  return new Command("clone")
    .summary("copy a file without copying its blocks (reflink)")
    .description(
      "Make TARGET a copy of SOURCE that shares its blocks: at once, and without using space. Whichever of the two is\n" +
        "written first gets new blocks for what is written. An existing TARGET is replaced; in a directory the copy has\n" +
        "SOURCE's name. Blocks that are mapped directly are never shared: a seal refuses, a breakable lease is broken.",
    )
    .argument("<source>", "regular file on a mapdirect mount")
    .argument("<target>", "file or directory on the same mount")
    .addHelpText(
      "after",
      `
'cp' shares blocks on a mapdirect mount as well, where it can, and copies the rest.

Examples:
  mapdirect clone /mnt/database /mnt/database.before
  mapdirect clone /mnt/image /mnt/images/`,
    )
    .action(clone);
}

function clone(source: string, target: string): void {
  const share = (from: number): void => {
    const place = isDirectory(target) ? join(target, basename(source)) : target;
    const { dev, ino, mode } = fstatSync(from);
    const { descriptor, made } = openTarget(place, mode & 0o777);
    let done = false;
    try {
      const found = fstatSync(descriptor);
      if (found.dev !== dev) throw new Failure(place, "is on another file system", "use cp");
      if (found.ino === ino) throw new Failure(place, "is the same file", "choose another name");
      if (found.size > 0) ftruncateSync(descriptor, 0);
      cloneFile(from, descriptor);
      done = true;
    } catch (error) {
      if (error instanceof Failure) throw error;
      if (errnoOf(error) === Errno.EOPNOTSUPP) {
        throw new Failure(place, "this volume was made without shared extents", "use cp");
      }
      throw new Failure(place, reason(error), "see 'mapdirect leases MOUNTPOINT' for who maps either file");
    } finally {
      closeSync(descriptor);
      if (made && !done) unlinkSync(place);
    }
  };
  withFile(source, share, {
    advice: "clone its files one by one, or use 'cp -a', which shares blocks as well",
  });
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}

function openTarget(path: string, mode: number): { descriptor: number; made: boolean } {
  try {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    return { descriptor: openSync(path, flags, mode), made: true };
  } catch (error) {
    if (errnoOf(error) !== Errno.EEXIST) throw new Failure(path, reason(error), "choose another place");
  }
  try {
    return { descriptor: openSync(path, constants.O_WRONLY), made: false };
  } catch (error) {
    throw new Failure(path, reason(error), "choose another name");
  }
}
