/**
 * The daemon's statistics, as JSON. A process of its own: whoever asks waits for the daemon.
 *
 *   node ask.mjs MOUNTPOINT
 */
import { ask, withOpen } from "../../../dist/daemon/client.js";

console.log(JSON.stringify(withOpen(process.argv[2], (descriptor) => ask(descriptor, "STATS"))));
