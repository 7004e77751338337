// Bundles board.tsx into the folder that is given.
import * as esbuild from 'esbuild';

await esbuild.build({
  entryPoints: ['board.tsx'],
  outfile: process.argv[2] + '/board.js',
  bundle: true,
  minify: true,
  format: 'iife',
  jsx: 'automatic',
  mainFields: ['module', 'browser', 'main'],
  define: { 'process.env.NODE_ENV': '"production"', 'process.env': '{}', global: 'window' },
  loader: Object.fromEntries(['.svg', '.woff2', '.woff', '.png', '.ttf'].map((e) => [e, 'dataurl'])),
  logLevel: 'warning',
});
