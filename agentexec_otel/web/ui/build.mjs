// Bundles src/ into ../static/: app.js, app.css, index.html, icons, licences. Run by .ci/dashboard.py.
import { build } from "esbuild";
import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const outdir = fileURLToPath(new URL("../static/", import.meta.url));
await rm(outdir, { recursive: true, force: true });
await mkdir(outdir);
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx" },
  outdir,
  bundle: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none", // LICENSES.txt has more: packages without such comments
  logLevel: "warning",
  metafile: true,
});
await cp(new URL("public/", import.meta.url), outdir, { recursive: true });
await writeFile(`${outdir}LICENSES.txt`, await licenses(Object.keys(metafile.inputs)));

/** The licences of the packages that are in the bundle. */
async function licenses(inputs) {
  const packages = new Set(inputs.flatMap((input) => input.match(/^node_modules\/(?:@[^/]+\/)?[^/]+/) ?? []));
  const texts = [...packages].sort().map(async (folder) => {
    const { name, version } = JSON.parse(await readFile(`${here}${folder}/package.json`, "utf8"));
    return `${name} ${version}\n\n${(await readFile(`${here}${folder}/LICENSE`, "utf8")).trim()}\n`;
  });
  return (await Promise.all(texts)).join("\n\n");
}
