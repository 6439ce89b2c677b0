/** info: what a volume is made of, and what its region can do. */
import { realpathSync, statSync } from "node:fs";
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import { asFailure, Failure } from "../../daemon/failure.ts";
import { lockHolder, mountAt, mountOfRegion, resolveMountpoint } from "../../daemon/mounts.ts";
import { defaultMountOptions, leasePolicy } from "../../daemon/options.ts";
import { inUse, openRegionOrExplain } from "../../daemon/run.ts";
import { Volume } from "../../session/volume.ts";
import { print, properties, toJson } from "../output.ts";

export function infoCommand(): Command {
  return new Command("info")
    .summary("show a volume and what its region can do")
    .description(
      "Show a volume: geometry, uuid, label, usage; kind and persistence granularity of its region; and, when it is\n" +
        "mounted, the features of FUSE in use, each fallback with its reason.",
    )
    .argument("<path>", "a region, or where it is mounted")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect info /srv/volume.region
  mapdirect info --json /mnt`,
    )
    .action(info);
}

async function info(path: string, flags: { json: boolean }): Promise<void> {
  const answer = await find(path);
  print(flags.json ? toJson(answer) : properties(answer));
}

async function find(path: string): Promise<Record<string, unknown>> {
  let absolute: string;
  try {
    absolute = resolveMountpoint(path);
    // What is mounted answers for itself; a directory below the mountpoint does as well.
    if (mountAt(absolute) !== undefined || statSync(absolute).isDirectory()) return askMount(absolute);
    absolute = realpathSync(path);
  } catch (error) {
    throw asFailure(error, path, "name a region or a mountpoint");
  }
  const mount = mountOfRegion(absolute);
  if (mount !== undefined) return askMount(mount.mountpoint);
  if (lockHolder(absolute) !== undefined) throw inUse(absolute);
  return await readRegion(absolute);
}

function askMount(path: string): Record<string, unknown> {
  const answer = withOpen(path, (descriptor) => ask(descriptor, "INFO"));
  if (typeof answer !== "object" || answer === null) {
    throw new Failure("daemon", "its answer is no object", "update mapdirect");
  }
  return { mountpoint: mountAt(path)?.mountpoint ?? path, ...answer };
}

/** Not mounted: recover in memory, write nothing. */
async function readRegion(path: string): Promise<Record<string, unknown>> {
  const region = openRegionOrExplain(path, { readOnly: true });
  try {
    const volume = await Volume.open(region, {
      ...leasePolicy(defaultMountOptions(false), region.facts.sizeBytes, 0),
      readOnly: true,
    });
    try {
      return { mountpoint: null, ...volume.summary() };
    } finally {
      await volume.close();
    }
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect info --help'");
  } finally {
    region.close();
  }
}
