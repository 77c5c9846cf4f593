package netrules

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// maxAttempts bounds how often rules are committed that somebody else changed
// between the reading and the commit. Two runs at once settle in two or three.
const maxAttempts = 5

// read reads a table. A legacy table that does not exist is left so: to list it
// would make it.
func (b *backend) read(table string) (state, error) {
	if b.inUse != nil && !b.inUse(table) {
		return state{}, nil
	}
	return readState(b.tables, table)
}

// apply commits the plan, again where somebody else changed the rules meanwhile.
func (b *backend) apply(ctx context.Context, p Plan) error {
	var err error
	for range maxAttempts {
		if err = b.applyOnce(ctx, p); !kindIs(err, RulesDiffer) {
			return err
		}
	}
	return err
}

// applyOnce reads each table back before it goes on to the next: the redirect is
// not to be had without the filter.
func (b *backend) applyOnce(ctx context.Context, p Plan) error {
	for _, table := range applyOrder {
		now, err := b.read(table)
		if err != nil {
			return err
		}
		if err := b.restore(ctx, p.commit(table, now)); err != nil {
			return err
		}
		if err := b.checkTable(p, table); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) remove(ctx context.Context) error {
	for _, table := range removeOrder {
		now, err := b.read(table)
		if err != nil {
			return err
		}
		if input := removal(table, now); input != "" {
			if err := b.restore(ctx, input); err != nil {
				return err
			}
		}
	}
	return nil
}

// check compares both tables with the plan.
func (b *backend) check(p Plan) error {
	for _, table := range applyOrder {
		if err := b.checkTable(p, table); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) checkTable(p Plan, table string) error {
	now, err := b.read(table)
	if err != nil {
		return err
	}
	if difference := p.chains[table].difference(now); difference != "" {
		return differ(b.mode, table, difference)
	}
	return nil
}

// difference says how a table's state departs from the planned chain. Empty: it
// does not.
func (c chain) difference(now state) string {
	jump := canonical("-A " + hookOutput + " -j " + c.name)
	switch {
	case !slices.Contains(now.chains, c.name):
		return "there is no chain " + c.name
	case len(now.chains) > 1:
		return "the chains of an earlier redirect are there: " + strings.Join(now.chains, " ")
	case len(now.output) == 0 || canonical(now.output[0]) != jump:
		return "the jump to " + c.name + " is not the first rule of " + hookOutput
	case len(now.jumps) > 1:
		return fmt.Sprintf("there are %d jumps to %s", len(now.jumps), c.name)
	case len(now.rules) != len(c.rules):
		return fmt.Sprintf("%s has %d rules instead of %d", c.name, len(now.rules), len(c.rules))
	}
	for i, rule := range c.rules {
		if canonical(now.rules[i]) != canonical("-A "+c.name+" "+rule) {
			return fmt.Sprintf("rule %d of %s is %q", i+1, c.name, now.rules[i])
		}
	}
	return ""
}

func differ(mode Mode, table, what string) *Error {
	cause := fmt.Sprintf("the %s table (%s) is not as planned: %s", table, mode, what)
	return &Error{RulesDiffer, cause, "run proxy-init again, after whatever else changes this pod's rules"}
}
