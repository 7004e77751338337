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
		Flags: append(commonFlags(), &cli.BoolFlag{Name: "default", Usage: "print the file that is shipped, every key at its default"}),
		Action: func(c *cli.Context) error {
			if c.Bool("default") {
				return config.Default().Write(c.App.Writer, true)
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			session.New(version, cfg, c.App.ErrWriter) // logs what is obsolete
			if _, given := common(c, "probe"); given {
				cfg.Selection = cfg.Probes
			}
			return cfg.Write(c.App.Writer, false)
		},
	}
}
