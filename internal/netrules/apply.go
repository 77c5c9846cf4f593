package netrules

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// maxAttempts is how often a commit is tried when another process changes the rules between
// the reading and the commit. Two concurrent runs of proxy-init need two or three attempts.
const maxAttempts = 5

// read reads a table. It does not list a legacy table that does not exist, because listing
// creates the table.
func (b *tool) read(table string) (state, error) {
	if b.inUse != nil && !b.inUse(table) {
		return state{}, nil
	}
	return readState(b.tables, table)
}

// apply commits the plan. It tries again if another process changed the rules meanwhile.
func (b *tool) apply(ctx context.Context, p Plan) error {
	var err error
	for range maxAttempts {
		if err = b.applyOnce(ctx, p); !kindIs(err, RulesDiffer) {
			return err
		}
	}
	return err
}

// applyOnce commits each table and reads it back before it commits the next: there must be no
// redirect without the filter.
func (b *tool) applyOnce(ctx context.Context, p Plan) error {
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

func (b *tool) remove(ctx context.Context) error {
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
func (b *tool) check(p Plan) error {
	for _, table := range applyOrder {
		if err := b.checkTable(p, table); err != nil {
			return err
		}
	}
	return nil
}

func (b *tool) checkTable(p Plan, table string) error {
	now, err := b.read(table)
	if err != nil {
		return err
	}
	if difference := p.chains[table].difference(now); difference != "" {
		return differ(b.backend, table, difference)
	}
	return nil
}

// difference returns the first difference between a table's state and the planned chain, or
// "" if there is none.
func (c chain) difference(now state) string {
	jump := canonical("-A " + hookOutput + " -j " + c.name)
	switch {
	case !slices.Contains(now.chains, c.name):
		return "there is no chain " + c.name
	case len(now.chains) > 1:
		return "it has chains of an earlier redirect: " + strings.Join(now.chains, " ")
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

func differ(backend Backend, table, what string) *Error {
	cause := fmt.Sprintf("the %s table (%s) is not as planned: %s", table, backend, what)
	return &Error{RulesDiffer, cause, "run proxy-init again, after all other programs that change this pod's rules"}
}
