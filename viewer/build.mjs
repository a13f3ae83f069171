// Bundles viewer.js into cmt_med/reports/assets, headed by the licence texts of all that is in it: a report carries the
// bundle, and with it the notices. The same texts are in LICENSES.txt beside it.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const ASSETS = "../cmt_med/reports/assets";
const LICENSE = /^(licen[cs]e|copying|notice)/i;

const result = await build({
  entryPoints: ["viewer.js"],
  bundle: true,
  minify: true,
  format: "iife",
  charset: "ascii",
  target: "es2022",
  legalComments: "eof",
  external: ["numcodecs/*"], // of zarr volumes, which are never opened here; they would be two thirds of the bundle
  outfile: `${ASSETS}/viewer.js`,
  metafile: true,
  write: false,
});

function folders({ outputs }) {
  const inputs = Object.values(outputs).flatMap((output) => Object.entries(output.inputs));
  const found = inputs.filter(([, use]) => use.bytesInOutput > 0)
    .map(([path]) => path.match(/^.*node_modules\/(@[^/]+\/)?[^/]+/)?.[0]);
  return [...new Set(found.filter(Boolean))].sort();
}

// A package without a licence file must have its text in licenses/.
function notice(folder) {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const kept = `licenses/${name.replace("/", "__")}.txt`;
  const files = readdirSync(folder).filter((file) => LICENSE.test(file)).map((file) => `${folder}/${file}`);
  if (!files.length && existsSync(kept)) files.push(kept);
  if (!files.length) throw new Error(`${name} has no licence text; put the one that it is under into viewer/${kept}`);
  const texts = files.map((file) => readFileSync(file, "utf8").replace(/\r\n?/g, "\n").trim());
  return `${name} ${version} (${license})\n\n${texts.join("\n\n")}\n`;
}

const rule = `\n${"-".repeat(78)}\n\n`;
const notices = `Third-party code in viewer.js\n${rule}${folders(result.metafile).map(notice).join(rule)}`;
if (/\*\/|<\/script|<!--/i.test(notices)) throw new Error("a licence text would end the comment that it stands in");
mkdirSync(ASSETS, { recursive: true });
writeFileSync(`${ASSETS}/LICENSES.txt`, notices);
writeFileSync(`${ASSETS}/viewer.js`, `/*!\n${notices}*/\n${result.outputFiles[0].text}`);
