/** doctor: what a region could do better for direct mappings, and how to get there; and whether a program can be served. */
import { realpathSync } from "node:fs";
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import { examine, type Finding, type RegionNow } from "../../daemon/doctor.ts";
import { asFailure, usage } from "../../daemon/failure.ts";
import { lockHolder, mountAt, resolveMountpoint, servedMountOf } from "../../daemon/mounts.ts";
import { examineProgram } from "../../daemon/program.ts";
import { inUse, openRegionOrExplain } from "../../daemon/region.ts";
import type { VolumeInfo } from "../../session/volume.ts";
import { print, toJson } from "../output.ts";

export function doctorCommand(): Command {
  return new Command("doctor")
    .summary("say what to do to get better direct mappings")
    .description(
      "Look at a region and at this machine, and say what to do to get better direct mappings.\n" +
        "Changes nothing; the region need not hold a file system yet.\n" +
        "With --program, say whether a program can be served by MAPDIRECT=auto, and why not. Nothing of it is run.",
    )
    .argument("[region]", "file, block device or DAX device, or where it is mounted")
    .option("--program <path>", "look at this program instead of a region")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect doctor /dev/pmem0
  mapdirect doctor --json /mnt
  mapdirect doctor --program /usr/bin/fio`,
    )
    .action(doctor);
}

function doctor(path: string | undefined, flags: { json: boolean; program?: string }): void {
  if ((path === undefined) === (flags.program === undefined)) {
    throw usage(
      "doctor",
      "what it shall look at is not clear",
      "name a region, a mountpoint, or --program PATH",
    );
  }
  if (flags.program !== undefined) doctorProgram(flags.program, flags.json);
  else doctorRegion(path as string, flags.json);
}

function doctorProgram(path: string, json: boolean): void {
  const answer = examineProgram(path);
  const served = `${answer.served ? "can" : "cannot"} be served by MAPDIRECT=auto`;
  if (json) print(toJson(answer));
  else
    print([`${answer.program}: ${answer.found}`, `  ${served}`, ...answer.findings.map(inWords)].join("\n"));
}

function doctorRegion(path: string, json: boolean): void {
  const region = lookAt(path);
  const findings = examine(region);
  if (json) print(toJson({ region: region.path, found: region.found, means: region.means, findings }));
  else print([`${region.path}: ${region.found}`, `  ${region.means}`, ...findings.map(inWords)].join("\n"));
}

function inWords({ what, verdict, why, todo }: Finding): string {
  return `${verdict.padEnd(4)}  ${what}: ${why}${todo === null ? "" : `\n      -> ${todo}`}`;
}

type Looked = RegionNow & { readonly found: string; readonly means: string };

function lookAt(path: string): Looked {
  let mountpoint: string | undefined;
  let absolute: string;
  try {
    const resolved = resolveMountpoint(path);
    if (mountAt(resolved) !== undefined) mountpoint = resolved;
    absolute = mountpoint ?? realpathSync(path);
  } catch (error) {
    throw asFailure(error, path, "name a region or a mountpoint");
  }
  mountpoint ??= servedMountOf(absolute)?.mountpoint;
  if (mountpoint !== undefined) return asMounted(mountpoint);
  if (lockHolder(absolute) !== undefined) throw inUse(absolute);
  const region = openRegionOrExplain(absolute, { readOnly: true });
  try {
    return region.facts;
  } finally {
    region.close();
  }
}

function asMounted(mountpoint: string): Looked {
  const { region } = withOpen(mountpoint, (descriptor) => ask(descriptor, "INFO")) as unknown as VolumeInfo;
  return {
    path: region.path,
    kind: region.kind,
    found: region.found,
    means: region.means,
    sizeBytes: region.size,
    granularity: region.granularity,
    dax: region.dax,
    mapSync: region.map_sync,
    assumed: region.assumed,
    mapAlignmentBytes: region.map_alignment,
    flushMethod: region.flush_method,
  };
}
