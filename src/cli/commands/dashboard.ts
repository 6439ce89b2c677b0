/** dashboard: a mount in the browser. */
import { Command } from "commander";
import { Failure, usage } from "../../daemon/failure.ts";
import { parseCount } from "../../daemon/sizes.ts";
import { openDashboard } from "../dashboard.ts";
import { print } from "../output.ts";
import { whereIs } from "../volumes.ts";

export function dashboardCommand(): Command {
  return new Command("dashboard")
    .summary("show a mount in the browser")
    .description(
      "Serve a page on the loopback interface, until Ctrl-C: the blocks of the volume, its leases, which can be broken\n" +
        "there, requests and their times, the files with most extents. The address that is printed has a secret in it:\n" +
        "whoever has it can do with the page what you can. For root and whoever mounted.",
    )
    .argument("<mountpoint>", "where a region is mounted")
    .option("--port <number>", "port to listen at (default: one that is free)")
    .addHelpText("after", "\nExamples:\n  mapdirect dashboard /mnt\n  mapdirect dashboard --port 8080 /mnt")
    .action(dashboard);
}

async function dashboard(path: string, flags: { port?: string }): Promise<void> {
  const port = flags.port === undefined ? 0 : parseCount(flags.port, 65535);
  if (port === undefined)
    throw usage(`--port ${flags.port}`, "it is no port", "leave it out, or name one up to 65535");
  const found = whereIs(path);
  if (!found.mounted) throw new Failure(path, "it is not mounted", `use 'mapdirect map ${path}'`);
  const { url } = await openDashboard(found.path, port);
  print(url);
}
