package docs

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/top"
	"nodeskoop/collect/catalog"
)

// The completions are generated from the real command line, and do not run the
// program: on a node in trouble a shell must not block. They read the names of pods
// from the textfile in its default folder.

// podNames returns a shell command that prints the pods in the default textfile as
// NAMESPACE/NAME, and host. Names that Kubernetes would not allow are skipped.
func podNames() string {
	t := config.Default().Textfile
	const char = "[a-zA-Z0-9._-]"
	const name = char + char + "*"
	return "echo host; sed -n 's|.*k8s_namespace=\"\\(" + name + "\\)\",k8s_pod=\"\\(" + name + "\\)\".*|\\1/\\2|p' " + t.Dir + "/" + t.File + " 2>/dev/null | grep -v '^" + config.Default().Pods.HostLabel + "/' | sort -u"
}

// valuesOf returns the words that a flag accepts; files means that it takes a path.
func valuesOf(flag string) (words []string, files bool) {
	switch flag {
	case "probe":
		words = append(words, "all", "default")
		for _, p := range catalog.Probes() {
			words = append(words, p.Name)
		}
	case "event":
		for _, e := range catalog.Events() {
			words = append(words, e.Name)
		}
	case "log-level":
		words = []string{"debug", "info", "warn", "error"}
	case "sort":
		words = append([]string{"pod"}, top.Names()...)
	case "config", "output", "html":
		files = true
	}
	return words, files
}

// completed is a flag in a shell completion.
type completed struct {
	names []string // with dashes, the long name first
	usage string
	value bool
	words []string
	files bool
	pods  bool // takes the name of a pod
}

func completedFlags(flags []cli.Flag) []completed {
	var out []completed
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok || f == cli.HelpFlag {
			continue
		}
		c := completed{usage: strings.ReplaceAll(doc.GetUsage(), "`", ""), value: doc.TakesValue()}
		for _, n := range f.Names() {
			if len(n) > 1 {
				n = "-" + n
			}
			c.names = append(c.names, "-"+n)
		}
		c.words, c.files = valuesOf(f.Names()[0])
		c.pods = f.Names()[0] == "pod"
		out = append(out, c)
	}
	return append(out, completed{names: []string{"--help", "-h"}, usage: "show help"})
}

func flagNames(flags []completed) string {
	var names []string
	for _, f := range flags {
		names = append(names, f.names[0])
	}
	return strings.Join(names, " ")
}

func commandNames(cmds []*cli.Command) string {
	var names []string
	for _, c := range cmds {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, " ")
}

// Bash writes the completion for bash.
func Bash(w io.Writer, app *cli.App) error {
	global := append(completedFlags(app.Flags), completed{names: []string{"--version", "-v"}})
	var b strings.Builder
	b.WriteString("# bash completion for nodeskoop. Made by nodeskoop docs bash. Do not edit.\n\n_nodeskoop_pods() { " + podNames() + "; }\n\n")
	b.WriteString(`_nodeskoop() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd='' sub='' i word
  # bash takes "=" for a word of its own.
  if [[ $cur == = ]]; then
    cur=''
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD-2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case $word in
`)
	var valued []string
	seen := map[string]bool{}
	each := func(f func(flags []completed)) {
		f(global)
		for _, c := range app.Commands {
			f(completedFlags(c.Flags))
		}
	}
	values := map[string]completed{}
	each(func(flags []completed) {
		for _, f := range flags {
			if key := strings.Join(f.names, " | "); f.value && !seen[key] {
				seen[key] = true
				valued = append(valued, key)
				values[key] = f
			}
		}
	})
	fmt.Fprintf(&b, "      %s)\n        if [[ ${COMP_WORDS[i+1]} == = ]]; then ((i += 2)); else ((i += 1)); fi ;;\n", strings.Join(valued, " | "))
	var silent []string
	b.WriteString(`      -*) ;;
      *) if [[ -z $cmd ]]; then cmd=$word; else sub=$word; fi ;;
    esac
  done
  COMPREPLY=()
  case $prev in
`)
	for _, key := range valued {
		f := values[key]
		switch {
		case f.pods:
			fmt.Fprintf(&b, "    %s)\n      mapfile -t COMPREPLY < <(compgen -W \"$(_nodeskoop_pods)\" -- \"$cur\")\n      return ;;\n", key)
		case !f.files && len(f.words) == 0:
			silent = append(silent, key)
		case f.files:
			fmt.Fprintf(&b, "    %s)\n      compopt -o filenames 2>/dev/null\n      mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n      return ;;\n", key)
		case f.names[0] == "--probe":
			// In a list, complete the part behind the last comma.
			fmt.Fprintf(&b, "    %s)\n      compopt -o nospace 2>/dev/null\n      local head=''\n      [[ $cur == *,* ]] && head=${cur%%,*},\n      mapfile -t COMPREPLY < <(compgen -P \"$head\" -W '%s' -- \"${cur##*,}\")\n      return ;;\n",
				key, strings.Join(f.words, " "))
		default:
			fmt.Fprintf(&b, "    %s)\n      mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\")\n      return ;;\n", key, strings.Join(f.words, " "))
		}
	}
	fmt.Fprintf(&b, "    %s)\n      return ;;\n", strings.Join(silent, " | "))
	b.WriteString("  esac\n  local words=''\n  case $cmd in\n")
	fmt.Fprintf(&b, "    '') words='%s'\n      [[ $cur == -* ]] && words='%s' ;;\n", commandNames(app.Commands), flagNames(global))
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(&b, "    %s) [[ -z $sub ]] && words='%s'\n      [[ $cur == -* ]] && words='%s' ;;\n", c.Name, commandNames(c.Subcommands), flagNames(completedFlags(c.Flags)))
	}
	b.WriteString("  esac\n  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\ncomplete -F _nodeskoop nodeskoop\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// zshSpec formats a flag for _arguments.
func zshSpec(f completed) string {
	quote := func(s string) string {
		return strings.NewReplacer("'", "'\\''", "[", "\\[", "]", "\\]", ":", "\\:").Replace(s)
	}
	action := ""
	switch {
	case !f.value:
	case f.files:
		action = ":file:_files"
	case f.pods:
		action = ":pod:_nodeskoop_pods"
	case f.names[0] == "--probe":
		action = ":probes:_values -s , probe " + strings.Join(f.words, " ")
	case len(f.words) > 0:
		action = ":value:(" + strings.Join(f.words, " ") + ")"
	default:
		action = ":value:"
	}
	long := f.names[0]
	if f.value {
		long += "="
	}
	if len(f.names) == 1 {
		return "'" + long + "[" + quote(f.usage) + "]" + action + "'"
	}
	names := append([]string{long}, f.names[1:]...)
	return "'(" + strings.Join(f.names, " ") + ")'{" + strings.Join(names, ",") + "}'[" + quote(f.usage) + "]" + action + "'"
}

// Zsh writes the completion for zsh.
func Zsh(w io.Writer, app *cli.App) error {
	var b strings.Builder
	b.WriteString("#compdef nodeskoop\n# zsh completion for nodeskoop. Made by nodeskoop docs zsh. Do not edit.\n\n_nodeskoop_pods() {\n  local -a pods\n  pods=(${(f)\"$(" + podNames() + ")\"})\n  compadd -a pods\n}\n\n_nodeskoop() {\n  local line state state_descr context\n  typeset -A opt_args\n  _arguments -C \\\n")
	for _, f := range append(completedFlags(app.Flags), completed{names: []string{"--version", "-v"}, usage: "print the version"}) {
		fmt.Fprintf(&b, "    %s \\\n", zshSpec(f))
	}
	describe := func(indent string, cmds []*cli.Command) {
		for _, c := range cmds {
			if !c.Hidden {
				fmt.Fprintf(&b, "%s'%s:%s'\n", indent, c.Name, strings.NewReplacer("'", "'\\''", ":", "\\:").Replace(c.Usage))
			}
		}
	}
	b.WriteString("    '1: :->command' '*:: :->rest'\n  case $state in\n  command)\n    local -a commands=(\n")
	describe("      ", app.Commands)
	b.WriteString("    )\n    _describe command commands ;;\n  rest)\n    case $line[1] in\n")
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(&b, "    %s)\n", c.Name)
		if len(c.Subcommands) > 0 {
			b.WriteString("      local -a pages=(\n")
			describe("        ", c.Subcommands)
			b.WriteString("      )\n      _describe page pages ;;\n")
			continue
		}
		b.WriteString("      _arguments")
		for _, f := range completedFlags(c.Flags) {
			fmt.Fprintf(&b, " \\\n        %s", zshSpec(f))
		}
		b.WriteString(" ;;\n")
	}
	b.WriteString("    esac ;;\n  esac\n}\n\n_nodeskoop \"$@\"\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Fish writes the completion for fish.
func Fish(w io.Writer, app *cli.App) error {
	s, err := app.ToFishCompletion()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString(s)
	b.WriteString("\nfunction __nodeskoop_pods\n    " + podNames() + "\nend\n")
	// The accepted values come from valuesOf.
	done := map[string]bool{}
	for _, c := range app.Commands {
		for _, f := range completedFlags(c.Flags) {
			name := strings.TrimLeft(f.names[0], "-")
			if len(f.words) == 0 && !f.pods || done[name] {
				continue
			}
			done[name] = true
			if f.pods {
				fmt.Fprintf(&b, "complete -c nodeskoop -l %s -x -a '(__nodeskoop_pods)'\n", name)
				continue
			}
			words := "'" + strings.Join(f.words, " ") + "'"
			if name == "probe" {
				words = "'(__fish_append , " + strings.Join(f.words, " ") + ")'"
			}
			fmt.Fprintf(&b, "complete -c nodeskoop -l %s -x -a %s\n", name, words)
		}
	}
	_, err = io.WriteString(w, b.String())
	return err
}
