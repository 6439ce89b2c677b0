/**
 * unmount: end a mount, and return when its daemon has closed the volume: then the region may be copied, checked or
 * mounted elsewhere.
 */
import { Command } from "commander";
import { unmountAndWait } from "../../daemon/stop.ts";

export function unmountCommand(): Command {
  return new Command("unmount")
    .alias("umount")
    .summary("unmount, and wait until the volume is closed")
    .description(
      "Unmount, and wait until the daemon has written its checkpoint and closed the region.\n" +
        "umount(8) and fusermount3 -u work as well, but do not wait.",
    )
    .argument("<mountpoint>", "where a region is mounted")
    .option(
      "--lazy",
      "detach it now; the daemon ends when nobody uses it any more, which is not waited for",
      false,
    )
    .addHelpText(
      "after",
      `
Examples:
  mapdirect unmount /mnt
  mapdirect unmount --lazy /mnt`,
    )
    .action(unmountAndWait);
}
