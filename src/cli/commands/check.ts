/** check: the invariants of a mounted volume, looked at by its daemon. */
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import { Failure } from "../../daemon/failure.ts";
import { print, toJson } from "../output.ts";

export function checkCommand(): Command {
  return new Command("check")
    .summary("check a mounted volume")
    .description(
      "Have the daemon look at all of its invariants: every name, link count and block. The mount answers nobody else\n" +
        "meanwhile, about a second for a million files. For administrators: root, and whoever mounted.",
    )
    .argument("<mountpoint>", "where it is mounted")
    .option("--json", "print JSON", false)
    .addHelpText("after", "\nExamples:\n  mapdirect check /mnt\n  mapdirect check --json /mnt")
    .action(check);
}

function check(path: string, flags: { json: boolean }): void {
  const answer = withOpen(path, (descriptor) => ask(descriptor, "CHECK")) as {
    consistent: boolean;
    problem?: string | null;
  };
  if (flags.json) print(toJson(answer));
  if (!answer.consistent) {
    const todo = "unmount it and use 'mapdirect fsck'; please report this: the daemon has made a mistake";
    throw new Failure(path, answer.problem ?? "an invariant does not hold", todo);
  }
  if (!flags.json) print(`${path}: nothing is wrong`);
}
