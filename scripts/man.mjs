/**
 * Man pages and completion, into dist/share:
 *
 *   mapdirect(1)   the commands, from the tree that also prints --help; then docs/OPERATIONS.md
 *   mapdirect(5)   mount options and what files can have, from docs/OPERATIONS.md; the format, from docs/FORMAT.md
 *   mapdirect(3)   the C library, from the comments of mapdirect.h; one more name for each function
 *
 * Nothing is written here that is written elsewhere: what is wrong in a page is put right where it comes from.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { marked } from "marked";
import { isMain, root } from "./setup.mjs";

const share = join(root, "dist", "share");
const read = (path) => readFileSync(join(root, path), "utf8");

// ---- roff

const SPECIAL = {
  "\\": "\\e",
  "…": "...",
  "–": "\\(en",
  "—": "\\(em",
  "→": "\\(->",
  "►": ">",
  "◄": "<",
  "▼": "v",
  "▲": "^",
  "─": "-",
  "│": "|",
  "┌": "+",
  "┐": "+",
  "└": "+",
  "┘": "+",
  "├": "+",
  "┤": "+",
  "┬": "+",
  "┴": "+",
  "┼": "+",
  "×": "\\(mu",
  "·": "\\(md",
  "≤": "\\(<=",
  "≥": "\\(>=",
  "≠": "\\(!=",
  µ: "\\(mc",
  "§": "\\(sc",
  "“": "\\(lq",
  "”": "\\(rq",
  "’": "'",
  "\u00a0": " ",
};

/** Text that stands for itself: nothing in it is a request or an escape. */
const plain = (text) => [...text].map((char) => SPECIAL[char] ?? char).join("");
/** Hyphens that are typed are minus signs. */
const typed = (text) => plain(text).replaceAll("-", "\\-");
const line = (text) => (/^[.']/.test(text) ? `\\&${text}` : text);
const bold = (text) => `\\fB${typed(text)}\\fR`;

/** A paragraph: one line of input each line of text, spaces that mean nothing left out. */
function flow(text) {
  return text
    .split("\n")
    .map((part) => line(part.trim().replace(/ {2,}/g, " ")))
    .filter((part) => part !== "")
    .join("\n");
}

function verbatim(text) {
  const lines = text.replace(/\n+$/, "").split("\n");
  return [".PP", ".EX", ...lines.map((part) => line(typed(part).replace(/ +$/, ""))), ".EE"].join("\n");
}

const heading = (text) => `.SH ${plain(text).toUpperCase().replaceAll('"', "")}`;
const subheading = (text) => `.SS ${typed(text).replaceAll('"', "")}`;

function page(section, about, parts) {
  const { version } = JSON.parse(read("package.json"));
  const epoch = process.env.SOURCE_DATE_EPOCH;
  const date = (epoch === undefined ? new Date() : new Date(Number(epoch) * 1000)).toISOString().slice(0, 10);
  const body = parts.flat(9).filter((part) => part !== "" && part !== undefined);
  return `${[
    `.TH MAPDIRECT ${section} ${date} "mapdirect ${version}"`,
    ".SH NAME",
    `mapdirect \\- ${plain(about)}`,
    ...body,
  ]
    .join("\n")
    // After a title there is a paragraph anyway.
    .replace(/^(\.S[HS] .*\n)(?:\.PP\n)+/gm, "$1")}\n`;
}

// ---- markdown

/** Inside a paragraph. */
function inline(tokens) {
  return (tokens ?? [])
    .map((token) => {
      switch (token.type) {
        case "codespan":
          return bold(token.text);
        case "strong":
          return `\\fB${inline(token.tokens)}\\fR`;
        case "em":
          return `\\fI${inline(token.tokens)}\\fR`;
        case "link":
          // Between the documents, a name says where; the address of a file says nothing in a man page.
          return /^https?:/.test(token.href)
            ? `${inline(token.tokens)} (${plain(token.href)})`
            : inline(token.tokens);
        case "br":
          return "\n.br\n";
        case "escape":
          return plain(token.text);
        default:
          return token.tokens === undefined
            ? plain(unescapeHtml(token.text ?? token.raw))
            : inline(token.tokens);
      }
    })
    .join("");
}

const unescapeHtml = (text) =>
  text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&#39;", "'")
    .replaceAll("&amp;", "&");

/** A table is a list here: what the first column names, and what the others say of it. */
function tableOf({ header, rows }) {
  return rows.flatMap((row) => {
    const [first, ...rest] = row;
    const said = rest.map((cell, column) => {
      const text = flow(inline(cell.tokens));
      return rest.length === 1 || text === "" ? text : `${flow(inline(header[column + 1].tokens))}: ${text}`;
    });
    const words = said.filter((text) => text !== "" && !text.endsWith(": ")).join("\n.br\n");
    return [".TP", flow(inline(first.tokens)) || "\\&", words || "\\&"];
  });
}

function blocks(tokens) {
  return tokens.flatMap((token) => {
    switch (token.type) {
      case "heading":
        return token.depth <= 2 ? heading(unescapeHtml(token.text)) : subheading(unescapeHtml(token.text));
      case "paragraph":
        return [".PP", flow(inline(token.tokens))];
      case "text":
        return flow(inline(token.tokens));
      case "code":
        return verbatim(token.text);
      case "list":
        return token.items.flatMap((item, index) => {
          const mark = token.ordered ? `${Number(token.start) + index}.` : "\\(bu";
          const inner = item.tokens.flatMap((part) =>
            part.type === "list" ? [".RS 4", blocks([part]), ".RE"] : blocks([part]),
          );
          return [`.IP ${mark} 4`, ...inner.filter((part) => part !== ".PP")];
        });
      case "table":
        return tableOf(token);
      case "space":
      case "html":
        return [];
      default:
        throw new Error(`man: no rule for ${token.type} in markdown`);
    }
  });
}

/** The sections of a document, from a heading of this depth to the next; their titles with them. */
function sections(path, depth, wanted) {
  const found = [];
  let inside = false;
  for (const token of marked.lexer(read(path))) {
    if (token.type === "heading" && token.depth <= depth)
      inside = token.depth === depth && wanted(token.text);
    if (inside)
      found.push(token.type === "heading" && token.depth === depth ? { ...token, depth: 2 } : token);
  }
  if (found.length === 0) throw new Error(`man: ${path} has none of the sections that the pages need`);
  return blocks(found);
}

// ---- mapdirect(1)

/** What is printed after the options: parts with a title, as it stands. */
function afterHelp(command) {
  let text = "";
  const { writeOut } = command.configureOutput();
  command.configureOutput({ writeOut: (part) => (text += part), getOutHasColors: () => false });
  command.outputHelp();
  command.configureOutput({ writeOut });
  return text.slice(command.helpInformation().length).trim();
}

function commandParts(command, path) {
  const name = [...path, command.name()].join(" ");
  const options = command.options.filter((option) => !option.hidden);
  const words = command.registeredArguments.map((argument) =>
    argument.required ? `\\fI${typed(argument.name())}\\fR` : `[\\fI${typed(argument.name())}\\fR]`,
  );
  const usage = [bold(name), ...(options.length > 0 ? ["[\\fIoption\\fR ...]"] : []), ...words].join(" ");
  const parts = [
    subheading(name),
    usage,
    ".PP",
    flow(plain(command.description() || command.summary())),
    ...options.flatMap((option) => {
      const fallback =
        option.defaultValue === undefined ||
        option.defaultValue === false ||
        String(option.defaultValue) === ""
          ? ""
          : ` (default: ${option.defaultValue})`;
      return [".TP", bold(option.flags), flow(plain(`${option.description}${fallback}`))];
    }),
  ];
  const more = afterHelp(command);
  if (more !== "") parts.push(verbatim(more));
  return [...parts, ...command.commands.map((sub) => commandParts(sub, [...path, command.name()]))];
}

function first(program) {
  return page("1", "a file system whose files can be mapped with MAP_DIRECT", [
    ".SH SYNOPSIS",
    "\\fBmapdirect\\fR \\fIcommand\\fR [\\fIoption\\fR ...] [\\fIargument\\fR ...]",
    ".SH DESCRIPTION",
    "A file system for Linux, served by a daemon through FUSE, in which a program can map the blocks of a file themselves.",
    "This page is about its commands; mapdirect(5) about mount options and the format, mapdirect(3) about the C library.",
    ".SH COMMANDS",
    program.commands.map((command) => commandParts(command, ["mapdirect"])),
    sections("docs/OPERATIONS.md", 2, (title) => title !== "Commands"),
    ".SH EXIT STATUS",
    flow(
      plain(
        "0 done, 1 tried and failed, 2 the request was wrong and nothing was tried. fsck has those of fsck(8).",
      ),
    ),
    ".SH ENVIRONMENT",
    ...[".TP", bold("NO_COLOR"), "Not empty: nothing is coloured."],
    ...[
      ".TP",
      bold("MAPDIRECT_DEBUG"),
      "Not empty: failures are printed with the place in the program where they arose.",
    ],
    ".SH SEE ALSO",
    "mapdirect(3), mapdirect(5), mmap(2), mount(8), fsck(8)",
  ]);
}

// ---- mapdirect(5)

function fifth() {
  return page("5", "mount options, what files can have, and the format of a region", [
    sections("docs/OPERATIONS.md", 3, (title) =>
      ["Mount options", "direct_group", "What files can have"].includes(title),
    ),
    sections("docs/FORMAT.md", 2, () => true),
    ".SH SEE ALSO",
    "mapdirect(1), mapdirect(3), mount(8)",
  ]);
}

// ---- mapdirect(3)

const uncomment = (comment) => comment.split("\n").map((part) => part.replace(/^ ?\*? ?/, "").trimEnd());

/** Paragraphs, and lists of names with what they mean, which are indented. */
function docstring(lines) {
  const out = [];
  let item = false;
  let fresh = true;
  for (const text of lines) {
    if (text === "") {
      item = false;
      fresh = true;
      continue;
    }
    const bullet = /^ +- (.*)$/.exec(text);
    const named =
      /^ {1,4}(\S+(?:, \S+)*) {2,}(\S.*)$/.exec(text) ?? /^ {2}(\S+(?:, \S+)+) {2}(\S.*)$/.exec(text);
    if (bullet !== null) {
      out.push(".IP \\(bu 4", line(plain(bullet[1])));
      item = true;
    } else if (named !== null) {
      out.push(".TP", bold(named[1]), line(plain(named[2])));
      item = true;
    } else if (item && /^ {3,}/.test(text)) out.push(line(plain(text.trim())));
    else {
      if (fresh || item) out.push(".PP");
      out.push(line(plain(text.trim())));
      item = false;
    }
    fresh = false;
  }
  return out;
}

function third() {
  const header = read("native/client/mapdirect.h");
  const [, top] = /^\/\*\n([\s\S]*?)\*\//.exec(header);
  const [title, ...rest] = uncomment(top);
  const about = title.replace(/^mapdirect\.h - /, "").replace(/\.$/, "");
  const parts = [];
  let body = [];
  const flush = () => {
    parts.push(docstring(body));
    body = [];
  };
  for (const text of rest) {
    if (/^[A-Z][A-Z ]+$/.test(text)) {
      flush();
      parts.push(heading(text));
      if (text === "SYNOPSIS") parts.push(".nf");
    } else if (parts.at(-1) === ".nf" && text !== "") {
      parts.push(bold(text.trim()), ".nf");
    } else {
      if (parts.at(-1) === ".nf") parts.push(".fi");
      // The sections are indented as a whole.
      body.push(text.replace(/^ {4}/, ""));
    }
  }
  flush();
  const names = [];
  parts.push(".SH CONSTANTS AND TYPES");
  const functions = [];
  const pattern = /\/\*\n \* (mapdirect_\w+) - ([\s\S]*?)\*\/\n([\s\S]*?;\n(?:} \w+;\n)?)/g;
  const documented = [...header.matchAll(pattern)];
  // What is between the functions: constants and structs, each with its comment.
  let definitions = header.slice(
    header.indexOf("/*\n * The mmap(2) flag."),
    header.lastIndexOf("#ifdef __cplusplus"),
  );
  for (const [whole] of documented) definitions = definitions.replace(whole, "");
  parts.push(verbatim(definitions.trim().replace(/\n{3,}/g, "\n\n")));
  for (const [, name, words, code] of documented) {
    names.push(name);
    functions.push(subheading(name), verbatim(code.replaceAll("MAPDIRECT_API ", "").trim()));
    functions.push(docstring(uncomment(`${words.charAt(0).toUpperCase()}${words.slice(1).trimEnd()}`)));
  }
  const text = page("3", about, [
    ...parts,
    ".SH FUNCTIONS",
    functions,
    ".SH SEE ALSO",
    "mapdirect(1), mapdirect(5), mmap(2)",
  ]);
  return { text, names };
}

// ---- all of it

export async function makeShare() {
  const { createProgram } = await import("../dist/cli/main.js");
  const { completionFor } = await import("../dist/cli/completion.js");
  const program = await createProgram();
  const library = third();
  const files = {
    "man/man1/mapdirect.1": first(program),
    "man/man5/mapdirect.5": fifth(),
    "man/man3/mapdirect.3": library.text,
    ...Object.fromEntries(library.names.map((name) => [`man/man3/${name}.3`, ".so man3/mapdirect.3\n"])),
    "bash-completion/completions/mapdirect": `${completionFor("bash", program)}\n`,
    "zsh/site-functions/_mapdirect": `${completionFor("zsh", program)}\n`,
    "fish/vendor_completions.d/mapdirect.fish": `${completionFor("fish", program)}\n`,
  };
  rmSync(share, { recursive: true, force: true });
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(share, path)), { recursive: true });
    writeFileSync(join(share, path), text);
  }
}

if (isMain(import.meta.url)) await makeShare();
