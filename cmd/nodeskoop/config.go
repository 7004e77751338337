package main

import (
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print the effective configuration as commented TOML",
		Description: "The file is read first, then nodeskoop.d/*.toml beside it, by name. If several set a key, the last one wins;\n" +
			"\"Set by\" names it. For --config DIR/NAME.toml, the folder is DIR/NAME.d.",
		Flags: append(commonFlags(),
			&cli.BoolFlag{Name: "default", Usage: "print the shipped file, with every key at its default"},
			&cli.BoolFlag{Name: "check", Usage: "print nothing; fail if the configuration has a mistake"},
		),
		Action: func(c *cli.Context) error {
			if c.Bool("default") && c.Bool("check") {
				return cli.Exit("--default and --check exclude each other", exitUsage)
			}
			if c.Bool("default") {
				return config.Default().Write(c.App.Writer, true)
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			session.New(version, cfg, c.App.ErrWriter) // logs obsolete options
			if c.Bool("check") {
				return nil
			}
			if _, given := common(c, "probe"); given {
				cfg.Selection = cfg.Probes
				for _, key := range []string{"probes.enabled", "probes.escalate"} {
					cfg.Origins[key] = "--probe, or NODESKOOP_PROBE"
				}
			}
			if _, given := common(c, "log-level"); given {
				cfg.Origins["log.level"] = "--log-level, or NODESKOOP_LOG_LEVEL"
			}
			return cfg.Write(c.App.Writer, false)
		},
	}
}
