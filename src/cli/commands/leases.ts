/** leases: who maps what directly; and, for the administrator, how to end it. */
import { setTimeout as sleep } from "node:timers/promises";
import { Command } from "commander";
import { ask, askOrphans, asLeases, readExtents, withOpen } from "../../daemon/client.ts";
import { Failure, usage } from "../../daemon/failure.ts";
import { FS_TYPE, readMounts } from "../../daemon/mounts.ts";
import type { OrphanReport } from "../../session/orphan-report.ts";
import { coloursFor, stateColour } from "../colours.ts";
import { print, table, toJson } from "../output.ts";

export function leasesCommand(): Command {
  return new Command("leases")
    .summary("list the leases on a mount")
    .description(
      "List the leases on a mount: one for each direct mapping, with who holds it and for how long. Processes that still\n" +
        "map files from before this mount are listed as orphaned, with how much of each file they can reach: nobody can\n" +
        "break that, it ends with them.",
    )
    .argument("<mountpoint>", "where a region is mounted, or any file there")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect leases /mnt
  mapdirect leases --json /mnt
  mapdirect leases break --file /mnt/database`,
    )
    .action(leases)
    .addCommand(breakCommand());
}

function breakCommand(): Command {
  return new Command("break")
    .summary("end a lease, whatever its kind (root, or whoever mounted)")
    .description(
      "Break a lease, a seal too: its holder is told, and has break_time seconds to let go. Then it is revoked:\n" +
        "it is in nobody's way any more, and blocks that it can still reach are not used again before it is gone.",
    )
    .argument("[id]", "number of the lease, as 'mapdirect leases' shows it")
    .option("--file <file>", "break every lease on this file")
    .option("--mount <mountpoint>", "mount of the lease; may be left out if there is only one")
    .option("--no-wait", "return at once instead of when the leases have ended or are revoked")
    .addHelpText(
      "after",
      `
Examples:
  mapdirect leases break 7
  mapdirect leases break --mount /mnt 7
  mapdirect leases break --file /mnt/database`,
    )
    .action(breakLeases);
}

const BREAK_POLL_MS = 20;

async function breakLeases(
  id: string | undefined,
  flags: { file?: string; mount?: string; wait: boolean },
): Promise<void> {
  const help = "see 'mapdirect leases break --help'";
  if ((id === undefined) === (flags.file === undefined))
    throw usage("leases break", "give an id or --file", help);
  if (id !== undefined && !/^[1-9][0-9]{0,14}$/.test(id))
    throw usage(`lease '${id}'`, "it is no number", help);
  const path = flags.file ?? flags.mount ?? onlyMount(`lease ${id}`);
  administratorOnly(path);
  // The list for one file names all its leases; the list for the mount is for the administrator.
  const wanted = withOpen(path, (descriptor) => {
    const inode = flags.file === undefined ? 0 : readExtents(descriptor).inode;
    return asLeases(ask(descriptor, "LEASES", inode)).filter(
      (lease) => id === undefined || lease.id === Number(id),
    );
  });
  if (wanted.length === 0 && id !== undefined)
    throw new Failure(`lease ${id}`, "there is none", `see 'mapdirect leases ${path}'`);
  if (wanted.length === 0) {
    print(`${path}: no lease to break`);
    return;
  }
  for (const lease of wanted) withOpen(path, (descriptor) => ask(descriptor, "BREAK", lease.id));
  const waitedFor = new Set(wanted.map((lease) => lease.id));
  while (flags.wait && waitedFor.size > 0) {
    const left = withOpen(path, (descriptor) => asLeases(ask(descriptor, "LEASES")));
    for (const lease of waitedFor) {
      if (left.find((other) => other.id === lease)?.state !== "breaking") waitedFor.delete(lease);
    }
    if (waitedFor.size > 0) await sleep(BREAK_POLL_MS);
  }
  print(
    `${wanted.length} ${wanted.length === 1 ? "lease" : "leases"} ${flags.wait ? "broken" : "being broken"}`,
  );
}

/** Asked beforehand: of a list that shows everybody their own nobody could tell whether there was nothing to break. */
function administratorOnly(path: string): void {
  const { mount } = withOpen(path, (descriptor) => ask(descriptor, "INFO")) as { mount: { uid: number } };
  if (![0, mount.uid].includes(process.geteuid?.() ?? 0)) {
    throw new Failure(
      "leases break",
      "it is for root and whoever mounted",
      `ask as root, or as user ${mount.uid}`,
    );
  }
}

const MOUNTS_NAMED_MAX = 8;

function onlyMount(what: string): string {
  const all = readMounts().filter((mount) => mount.fsType === FS_TYPE);
  const [first, second] = all;
  if (first === undefined) throw new Failure(what, "no mapdirect file system is mounted", "mount one");
  if (second !== undefined) {
    const named = all.slice(0, MOUNTS_NAMED_MAX).map(({ mountpoint }) => mountpoint);
    if (all.length > named.length) named.push("…");
    const where = `mapdirect file systems are mounted on ${named.join(", ")}`;
    throw usage(what, `several ${where}`, "say which with --mount MOUNTPOINT");
  }
  return first.mountpoint;
}

/** In the form of leases, of which they have no more than who maps what: they were granted by a daemon that is gone. */
const asLease = ({ bytes, ...orphan }: OrphanReport) => ({
  id: 0,
  kind: "orphaned",
  state: "mapped",
  ...orphan,
  offset: 0,
  length: bytes,
  age_s: 0,
});

function leases(path: string, flags: { json: boolean }): void {
  const all = withOpen(path, (descriptor) => [
    ...asLeases(ask(descriptor, "LEASES")),
    ...askOrphans(descriptor).map(asLease),
  ]);
  if (flags.json) {
    print(toJson(all));
    return;
  }
  if (all.length === 0) {
    print("no leases");
    return;
  }
  const rows = all.map((lease) => [
    lease.id === 0 ? "-" : `${lease.id}`,
    lease.kind,
    lease.state,
    `${lease.pid}`,
    `${lease.uid}`,
    lease.command,
    lease.id === 0 ? "-" : `${lease.offset}`,
    `${lease.length}`,
    `${lease.quarantined}`,
    lease.id === 0 ? "-" : `${Math.floor(lease.age_s)} s`,
    lease.file === "" ? "(deleted)" : lease.file,
  ]);
  const colours = coloursFor(process.stdout);
  const header = [
    "id",
    "kind",
    "state",
    "pid",
    "uid",
    "command",
    "offset",
    "length",
    "quarantined",
    "age",
    "file",
  ];
  const paint = (text: string, column: number): string =>
    header[column] === "state" ? stateColour(colours, text.trim())(text) : text;
  print(table(header, rows, paint));
}
