/**
 * A program with very many files open, and a lease on each if it is told so. Says on its standard output "open COUNT", holds
 * them until its standard input ends, and checks that each still reads.
 *
 * Arguments: the folder, how many, the request that grants a lease in hexadecimal ("" for none), its ioctl's number, the addon.
 */
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, countText, grant, command, addonPath] = process.argv.slice(2);
const count = Number(countText);
const request = Buffer.from(grant, "hex");
const addon = request.length > 0 ? createRequire(import.meta.url)(addonPath) : null;

const descriptors = [];
for (let index = 0; index < count; index += 1) {
  const descriptor = openSync(join(folder, `file-${index % 100}`), "r+");
  descriptors.push(descriptor);
  if (addon === null) continue;
  try {
    addon.ioctl(descriptor, Number(command), new Uint8Array(request));
  } catch (error) {
    writeSync(1, `refused ${index} ${error.code}\n`);
    break;
  }
}
writeSync(1, `open ${descriptors.length}\n`);
const one = Buffer.alloc(1);
process.stdin.on("end", () => {
  let wrong = 0;
  for (const [index, descriptor] of descriptors.entries()) {
    if (readSync(descriptor, one, 0, 1, 0) !== 1 || one[0] !== 65 + ((index % 100) % 26)) wrong += 1;
  }
  for (const descriptor of descriptors) closeSync(descriptor);
  writeSync(1, `wrong ${wrong}\n`);
});
process.stdin.resume();
