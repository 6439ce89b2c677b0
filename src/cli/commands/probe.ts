/** probe: which volume lies on a region, as blkid(8) says it of file systems that it knows. */
import { Command } from "commander";
import { asFailure, Failure, usage } from "../../daemon/failure.ts";
import { type Identity, identify, volumesOnDevices } from "../../daemon/identify.ts";
import { print, toJson } from "../output.ts";

export function probeCommand(): Command {
  return new Command("probe")
    .summary("say which volume a region holds, or all devices")
    .description(
      "Print uuid, label and block size of a volume, as blkid(8) does for file systems that it knows: from the superblock\n" +
        "alone, also while it is mounted. Without a region, of every block and DAX device that you may read.",
    )
    .argument("[region]", "file or device")
    .option("--udev", "print properties for a udev rule (ID_FS_TYPE and so on)", false)
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect probe /dev/pmem0
  mapdirect probe --json`,
    )
    .action(probe);
}

function probe(region: string | undefined, flags: { udev: boolean; json: boolean }): void {
  if (flags.udev && (region === undefined || flags.json))
    throw usage("probe", "--udev is for one region, and not JSON", "see 'mapdirect probe --help'");
  const found = region === undefined ? volumesOnDevices() : [{ path: region, volume: identifyOne(region) }];
  if (flags.json) {
    print(toJson(found.map(({ path, volume }) => ({ region: path, type: "mapdirect", ...inJson(volume) }))));
    return;
  }
  for (const { path, volume } of found) print(flags.udev ? forUdev(volume) : inWords(path, volume));
}

function identifyOne(region: string): Identity {
  let found: Identity | null;
  try {
    found = identify(region);
  } catch (error) {
    throw asFailure(error, region, "check the path and its permissions");
  }
  if (found === null) throw new Failure(region, "holds no mapdirect file system", "see 'blkid' for others");
  return found;
}

const inJson = ({ uuid, label, version, blockBytes, sizeBytes }: Identity) => ({
  ...{ uuid, label, format_version: version, block_size: blockBytes, size: sizeBytes },
});

const inWords = (path: string, { uuid, label, blockBytes }: Identity): string =>
  `${path}: ${label === "" ? "" : `LABEL=${JSON.stringify(label)} `}UUID="${uuid}" BLOCK_SIZE="${blockBytes}" TYPE="mapdirect"`;

/** As udev's own builtin has them: what it cannot have in a name of /dev/disk/by-label is \\x and its code. */
function forUdev({ uuid, label, version }: Identity): string {
  const encoded = [...Buffer.from(label)]
    .map((byte) => {
      const character = String.fromCharCode(byte);
      return /[0-9A-Za-z#+.:=@_-]/.test(character) ? character : `\\x${byte.toString(16).padStart(2, "0")}`;
    })
    .join("");
  const safe = label.replace(/[^0-9A-Za-z#+.:=@_-]/gu, "_");
  return [
    ...["ID_FS_TYPE=mapdirect", "ID_FS_USAGE=filesystem", `ID_FS_VERSION=${version}`],
    ...[`ID_FS_UUID=${uuid}`, `ID_FS_UUID_ENC=${uuid}`],
    ...(label === "" ? [] : [`ID_FS_LABEL=${safe}`, `ID_FS_LABEL_ENC=${encoded}`]),
  ].join("\n");
}
