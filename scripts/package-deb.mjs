/**
 * `npm run package:deb`: Debian packages of this tree, for this architecture, in `dist-packages/`, and what lintian says of them.
 *
 * Everything is staged as it will be installed, without a build system of Debian's in between:
 *
 *   /usr/lib/mapdirect/        the program: dist/, the addons, node_modules of what it depends on
 *   /usr/bin/mapdirect         finds a Node.js that is new enough; /usr/sbin/{mount,fsck}.[fuse.]mapdirect are the same for mount(8)
 *                              and fsck(8)
 *   /usr/lib/TRIPLET/          the client libraries, and the pkg-config file
 *   /usr/include/, /usr/share/man/, /usr/lib/systemd/system/, /usr/share/doc/mapdirect/ (the udev rule as an example)
 *
 * and, in a package of its own that needs Python, /usr/lib/python3/dist-packages/mapdirect/.
 *
 * Invariant: two runs of one commit give the same packages (times are those of the commit, owners are root).
 */
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "./build.mjs";
import { fail, hasCommand, root, SetupError, setup } from "./setup.mjs";

const at = (...parts) => join(root, ...parts);
const output = (command, ...args) => execFileSync(command, args, { cwd: root, encoding: "utf8" }).trim();

/** Debian's names for what the package is made of. */
function facts() {
  const { version, homepage } = JSON.parse(readFileSync(at("package.json"), "utf8"));
  const git = existsSync(at(".git"));
  const epoch =
    process.env.SOURCE_DATE_EPOCH ?? (git ? output("git", "log", "-1", "--format=%ct") : undefined);
  const email = git ? output("git", "log", "-1", "--format=%ae") : "";
  return {
    VERSION: version,
    ARCHITECTURE: output("dpkg", "--print-architecture"),
    TRIPLET: output("dpkg-architecture", "-qDEB_HOST_MULTIARCH"),
    HOMEPAGE: homepage ?? "https://www.npmjs.com/package/mapdirect",
    EMAIL: /^[^@\s<>]+@[^@\s<>]+\.[a-z]+$/.test(email) ? email : "maintainers@mapdirect.example.org",
    date: new Date(Number(epoch ?? Math.floor(Date.now() / 1000)) * 1000),
  };
}

const fill = (text, values) => text.replace(/@([A-Z_]+)@/g, (_, name) => values[name]);

class Stage {
  constructor(folder) {
    this.folder = folder;
    rmSync(folder, { recursive: true, force: true });
  }
  to(path) {
    const target = join(this.folder, path);
    mkdirSync(dirname(target), { recursive: true });
    return target;
  }
  copy(source, path, mode = 0o644) {
    copyFileSync(source, this.to(path));
    chmodSync(this.to(path), mode);
  }
  write(path, content, mode = 0o644) {
    writeFileSync(this.to(path), content);
    chmodSync(this.to(path), mode);
  }
  link(target, path) {
    symlinkSync(target, this.to(path));
  }
  /** Every file that is no link, by path from the root of the package. */
  files(folder = this.folder) {
    return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return this.files(path);
      return entry.isFile() ? [relative(this.folder, path)] : [];
    });
  }
}

/** What is installed in node_modules for programs that use the package: not what only tests and builds need. */
function productionModules() {
  const { packages } = JSON.parse(readFileSync(at("package-lock.json"), "utf8"));
  return Object.entries(packages)
    .filter(([path, entry]) => path !== "" && !entry.dev && !entry.optional && !entry.devOptional)
    .map(([path]) => path)
    .filter((path) => path !== "node_modules/node-addon-api"); // Headers for the build.
}

/** Of node_modules, what runs: no tests, no sources of what is compiled, no notes. */
const runs = (path) =>
  /\.(js|cjs|mjs|json|css)$|LICEN[CS]E|\/license$/i.test(path) &&
  !/\/(test|tests|bench\w*|examples?|docs?)\//.test(path);

function copyTree(source, target, wanted) {
  cpSync(source, target, {
    recursive: true,
    filter: (path) => statSync(path).isDirectory() || wanted(path.slice(source.length)),
  });
}

function stageProgram(stage) {
  const home = "usr/lib/mapdirect";
  copyTree(at("dist"), stage.to(`${home}/dist`), (path) => {
    if (/^\/(lib|include|demo|system|sbin|share)\//.test(path) || path === "/bin/demo.js") return false;
    return !/\.map$|^\/bin\/.*\.d\.ts$/.test(path);
  });
  for (const name of ["mapdirect.node", "mapdirect_client.node"]) {
    stage.copy(at("build/Release", name), `${home}/build/Release/${name}`);
  }
  stage.copy(at("package.json"), `${home}/package.json`);
  cpSync(at("assets"), stage.to(`${home}/assets`), { recursive: true });
  for (const path of productionModules()) {
    if (existsSync(at(path))) copyTree(at(path), stage.to(`${home}/${path}`), runs);
  }
  removeEmptyFolders(join(stage.folder, home));
  stage.copy(at("packaging/debian/mapdirect.sh"), "usr/bin/mapdirect", 0o755);
  for (const name of ["mount.mapdirect", "mount.fuse.mapdirect", "fsck.mapdirect", "fsck.fuse.mapdirect"])
    stage.link("../bin/mapdirect", `usr/sbin/${name}`);
  if (existsSync(at("dist/system/mapdirect@.service"))) {
    stage.copy(at("dist/system/mapdirect@.service"), "usr/lib/systemd/system/mapdirect@.service");
    stage.copy(at("dist/system/60-mapdirect.rules"), "usr/share/doc/mapdirect/examples/60-mapdirect.rules");
    stage.copy(at("dist/system/mapdirect.magic"), "usr/share/mapdirect/magic");
  }
}

function removeEmptyFolders(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) removeEmptyFolders(join(folder, entry.name));
  }
  if (readdirSync(folder).length === 0) rmSync(folder, { recursive: true });
}

function stageLibraries(stage, { TRIPLET, VERSION }) {
  const libraries = `usr/lib/${TRIPLET}`;
  stage.copy(at("dist/lib/libmapdirect.so"), `${libraries}/libmapdirect.so.0`);
  stage.link("libmapdirect.so.0", `${libraries}/libmapdirect.so`);
  stage.copy(at("dist/lib/libmapdirect_preload.so"), `${libraries}/libmapdirect_preload.so`);
  stage.copy(at("dist/include/mapdirect.h"), "usr/include/mapdirect.h");
  const pc = readFileSync(at("packaging/debian/mapdirect.pc.in"), "utf8");
  stage.write(`${libraries}/pkgconfig/mapdirect.pc`, fill(pc, { TRIPLET, VERSION }));
}

const packed = (content) => gzipSync(content, { level: 9 });

/** Where Debian's shells look; the folders in dist/share/ are those of their own documentation. */
const COMPLETIONS = {
  "bash-completion/completions/mapdirect": "usr/share/bash-completion/completions/mapdirect",
  "zsh/site-functions/_mapdirect": "usr/share/zsh/vendor-completions/_mapdirect",
  "fish/vendor_completions.d/mapdirect.fish": "usr/share/fish/vendor_completions.d/mapdirect.fish",
};

function stageChanges(stage, name, { VERSION, EMAIL, date }) {
  const when = `${date.toUTCString().replace("GMT", "+0000")}`;
  const changes = `${name} (${VERSION}) unstable; urgency=medium\n\n  * See NEWS.gz, which is the changelog of the project.\n\n -- mapdirect contributors <${EMAIL}>  ${when}\n`;
  stage.write(`usr/share/doc/${name}/changelog.gz`, packed(changes));
  stage.write(`usr/share/doc/${name}/NEWS.gz`, packed(readFileSync(at("CHANGELOG.md"))));
}

function stageDocuments(stage, known) {
  const doc = "usr/share/doc/mapdirect";
  for (const name of readdirSync(at("docs"))) {
    if (name.endsWith(".md")) stage.copy(at("docs", name), `${doc}/${name}`);
  }
  stage.copy(at("README.md"), `${doc}/README.md`);
  copyTree(at("examples"), stage.to(`${doc}/examples`), (path) => !path.includes("/__pycache__/"));
  stageChanges(stage, "mapdirect", known);
  stage.write(`${doc}/copyright`, copyright(productionModules()));
  const overrides = at("packaging/debian/lintian-overrides");
  if (existsSync(overrides)) stage.copy(overrides, "usr/share/lintian/overrides/mapdirect");
  for (const [source, target] of Object.entries(COMPLETIONS)) {
    if (existsSync(at("dist/share", source))) stage.copy(at("dist/share", source), target);
  }
  const man = at("dist/share/man");
  if (!existsSync(man)) return;
  for (const section of readdirSync(man)) {
    for (const name of readdirSync(join(man, section))) {
      const page = readFileSync(join(man, section, name));
      stage.write(
        `usr/share/man/${section}/${name.replace(/\.gz$/, "")}.gz`,
        name.endsWith(".gz") ? page : packed(page),
      );
    }
  }
  // Mount options are a part of mapdirect(5).
  for (const name of ["mount.mapdirect", "mount.fuse.mapdirect"]) {
    stage.link("../man5/mapdirect.5.gz", `usr/share/man/man8/${name}.8.gz`);
  }
  for (const name of ["fsck.mapdirect", "fsck.fuse.mapdirect"]) {
    stage.link("../man1/mapdirect.1.gz", `usr/share/man/man8/${name}.8.gz`);
  }
}

/** Machine-readable (DEP 5): ours, and that of each module that comes along. */
function copyright(modules) {
  const text = (license) => license.replace(/^Copyright.*\n/gm, "").trim();
  const indent = (body) =>
    body
      .split("\n")
      .map((line) => (line.trim() === "" ? " ." : ` ${line.trim()}`))
      .join("\n");
  const mit = text(readFileSync(at("LICENSE"), "utf8").replace(/^MIT License\n/, ""));
  const parts = [
    "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
    "",
    "Files: *",
    "Copyright: 2026 mapdirect contributors",
    "License: MIT",
    indent(mit),
  ];
  for (const path of modules) {
    if (!existsSync(at(path, "package.json"))) continue;
    const { name, license, author, version } = JSON.parse(readFileSync(at(path, "package.json"), "utf8"));
    const who = typeof author === "string" ? author : (author?.name ?? `the authors of ${name}`);
    const file = readdirSync(at(path)).find((entry) => /^licen[cs]e/i.test(entry));
    const full = file === undefined ? `See ${name} ${version}.` : readFileSync(at(path, file), "utf8").trim();
    const common = /^Apache-2/.test(license) ? "/usr/share/common-licenses/Apache-2.0" : undefined;
    const body = common === undefined ? full : `The whole text is in ${common} on Debian systems.`;
    parts.push(
      "",
      `Files: usr/lib/mapdirect/${path}/*`,
      `Copyright: ${who}`,
      `License: ${name}-${license}`,
      indent(body),
    );
  }
  return `${parts.join("\n")}\n`;
}

/** Stripped, as Debian wants it; then what they need of other packages. */
function libraryDependencies(stage) {
  const binaries = stage.files().filter((path) => /\.(node|so|so\.0)$/.test(path));
  for (const path of binaries) {
    output(
      "strip",
      "--strip-unneeded",
      "--remove-section=.comment",
      "--remove-section=.note",
      join(stage.folder, path),
    );
  }
  // dpkg-shlibdeps wants a source package around it.
  const work = `${stage.folder}.shlibs`;
  mkdirSync(join(work, "debian"), { recursive: true });
  writeFileSync(join(work, "debian/control"), "Source: mapdirect\n\nPackage: mapdirect\nArchitecture: any\n");
  const args = ["-O", "--ignore-missing-info", ...binaries.map((path) => `-e${join(stage.folder, path)}`)];
  const found = spawnSync("dpkg-shlibdeps", args, { cwd: work, encoding: "utf8" });
  rmSync(work, { recursive: true });
  const depends = /^shlibs:Depends=(.*)$/m.exec(found.stdout)?.[1];
  if (depends === undefined) throw new SetupError(`package:deb: dpkg-shlibdeps: ${found.stderr.trim()}`);
  return depends;
}

/** Pure Python: the same for every architecture. */
function stagePython(stage, known) {
  const modules = "usr/lib/python3/dist-packages/mapdirect";
  for (const name of ["__init__.py", "py.typed"])
    stage.copy(at("python/mapdirect", name), `${modules}/${name}`);
  stageChanges(stage, "python3-mapdirect", known);
  stage.write("usr/share/doc/python3-mapdirect/copyright", copyright([]));
}

/** `folder`: of packaging/, where its control file and scripts are. */
function stageControl(stage, folder, known, depends) {
  const files = stage.files().sort();
  const bytes = files.reduce((sum, path) => sum + lstatSync(join(stage.folder, path)).size, 0);
  const values = { ...known, DEPENDS: depends, INSTALLED_SIZE: `${Math.ceil(bytes / 1024)}` };
  stage.write("DEBIAN/control", fill(readFileSync(at("packaging", folder, "control.in"), "utf8"), values));
  for (const name of ["postinst", "prerm"])
    stage.copy(at("packaging", folder, name), `DEBIAN/${name}`, 0o755);
  const sums = files.map((path) => {
    const hash = createHash("md5")
      .update(readFileSync(join(stage.folder, path)))
      .digest("hex");
    return `${hash}  ${path}\n`;
  });
  stage.write("DEBIAN/md5sums", sums.join(""));
}

function isScript(path) {
  const start = Buffer.alloc(2);
  const descriptor = openSync(path, "r");
  readSync(descriptor, start, 0, 2, 0);
  closeSync(descriptor);
  return start.toString() === "#!";
}

/** Modes as they belong whatever the umask of whoever builds, and one time for all. */
function settle(folder, date) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) settle(path, date);
    else if (entry.isFile()) {
      chmodSync(path, isScript(path) ? 0o755 : 0o644);
      utimesSync(path, date, date);
    }
  }
  chmodSync(folder, 0o755);
  utimesSync(folder, date, date);
}

function buildPackage(stage, known, name) {
  settle(stage.folder, known.date);
  mkdirSync(at("dist-packages"), { recursive: true });
  const file = at("dist-packages", name);
  const env = { ...process.env, SOURCE_DATE_EPOCH: `${Math.floor(known.date.getTime() / 1000)}` };
  execFileSync("dpkg-deb", ["--root-owner-group", "-Zxz", "--build", stage.folder, file], {
    env,
    stdio: ["ignore", "ignore", "inherit"],
  });
  rmSync(stage.folder, { recursive: true });
  return file;
}

function packageDebs() {
  const needed = { dpkg: "dpkg", "dpkg-deb": "dpkg", "dpkg-shlibdeps": "dpkg-dev", strip: "binutils" };
  const missing = Object.keys(needed).filter((name) => !hasCommand(name));
  if (missing.length > 0) {
    const packages = [...new Set(missing.map((name) => needed[name]))].join(" ");
    throw new SetupError(
      `package:deb: ${missing.join(", ")} missing; on Debian: 'apt-get install -y ${packages}'`,
    );
  }
  const known = facts();
  const stage = new Stage(at(".cache/deb/mapdirect"));
  stageProgram(stage);
  stageLibraries(stage, known);
  stageDocuments(stage, known);
  stageControl(stage, "debian", known, libraryDependencies(stage));
  stage.write("DEBIAN/triggers", "activate-noawait ldconfig\n");
  stage.write("DEBIAN/shlibs", `libmapdirect 0 mapdirect (>= ${known.VERSION})\n`);
  const python = new Stage(at(".cache/deb/python3-mapdirect"));
  stagePython(python, known);
  stageControl(python, "python3-mapdirect", known, "");
  return [
    buildPackage(stage, known, `mapdirect_${known.VERSION}_${known.ARCHITECTURE}.deb`),
    buildPackage(python, known, `python3-mapdirect_${known.VERSION}_all.deb`),
  ];
}

try {
  setup();
  build();
  const files = packageDebs();
  for (const file of files) console.log(`package:deb: ${relative(root, file)}`);
  if (!hasCommand("lintian")) console.log("package:deb: lintian is not installed: not checked");
  else {
    const checked = spawnSync(
      "lintian",
      ["--allow-root", "--tag-display-limit", "0", "--fail-on", "error", ...files],
      { stdio: "inherit" },
    );
    if (checked.status !== 0) throw new SetupError("package:deb: lintian found errors; see above");
  }
} catch (error) {
  fail(error);
}
