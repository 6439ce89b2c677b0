/**
 * Loaded into a daemon (node --import) to have our own bugs happen in it at will: the file that MAPDIRECT_FAULTS names
 * lists which ones happen from now on. Throws what such a bug throws, in the place where it would.
 */
import { readFileSync } from "node:fs";

const { InvariantError } = await import("../../dist/base/errors.js");
const { GroupBuilder } = await import("../../dist/media/group.js");
const { Store } = await import("../../dist/namespace/store.js");
const { State } = await import("../../dist/namespace/state.js");
const { Volume } = await import("../../dist/session/volume.js");
const { References } = await import("../../dist/space/references.js");

const happens = (fault) => readFileSync(process.env.MAPDIRECT_FAULTS, "utf8").split("\n").includes(fault);

/** Before each call of this method: throw, if it is asked for and `when` of the arguments says so. */
function inject(fault, prototype, method, make, when = () => true) {
  const real = prototype[method];
  prototype[method] = function (...args) {
    if (when(...args) && happens(fault)) throw make(`injected: ${fault}`);
    return real.apply(this, args);
  };
}

const rangeError = (text) => new RangeError(text);
const broken = (text) => new InvariantError(text);
const isMarked = (_, name) => name.startsWith("marked");

inject("before-commit", GroupBuilder.prototype, "dentry", rangeError, isMarked);
inject("invariant-before-commit", GroupBuilder.prototype, "dentry", broken, isMarked);
inject("applying", State.prototype, "dentry", rangeError, isMarked);
inject("orphan", GroupBuilder.prototype, "inodeGone", rangeError);
inject("orphan-applying", State.prototype, "inodeGone", rangeError);
inject("sync", Store.prototype, "sync", rangeError);
inject("check", References.prototype, "check", broken);
inject("info", Volume.prototype, "summary", rangeError);

if (process.argv.includes("--foreground")) {
  setInterval(() => {
    if (happens("callback")) throw new RangeError("injected: callback");
  }, 50).unref();
  setInterval(() => {
    if (happens("rejection")) Promise.reject(new RangeError("injected: rejection"));
  }, 50).unref();
}
