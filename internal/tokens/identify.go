package tokens

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// A request may name an identity by its object ID or its ARM resource ID, and no setting says
// which client ID that is. Then the access tokens of the configured identities say it, by
// their claims. For an identity whose claims are not known, an exchange is made for the
// resource of the request, so that its token is also the answer. The claims are remembered
// until the token that has them ends. So whatever the requests name, they cost at most one
// successful exchange of each configured identity in the lifetime of its token. ADR 0054 has
// the reasons.

// named holds the names of a configured identity.
type named struct {
	names exchange.Names // of its newest token that has any
	end   moment         // when that token ends: the names are not used any more

	// logged has the names that a request has used, which are logged.
	logged exchange.Names
}

func (n *named) known(now time.Time) bool {
	return n.names != (exchange.Names{}) && !n.end.reached(now)
}

func (m *memory) newNamed(identities []azure.ClientID) {
	m.named = make(map[azure.ClientID]*named, len(identities))
	for _, id := range identities {
		if m.named[id] == nil {
			m.named[id] = &named{}
			m.identities = append(m.identities, id)
		}
	}
}

// namesOf returns the names in a token of a configured identity. Tokens of other identities
// are not parsed.
func (s *Service) namesOf(id azure.ClientID, token exchange.Token) exchange.Names {
	if s.memory.named[id] == nil {
		return exchange.Names{}
	}
	return token.Names()
}

// noteNames remembers the names in a token of id until end. A token without names changes
// nothing. Names that contradict the known ones replace them.
func (m *memory) noteNames(id azure.ClientID, names exchange.Names, end moment, now time.Time) {
	n := m.named[id]
	switch {
	case n == nil, names == exchange.Names{}:
		return
	case n.known(now) && names == n.names && end.wall.Before(n.end.wall):
		return // another token has the same names for longer
	case n.known(now) && names.ResourceID == "" && names.ObjectID == n.names.ObjectID && n.names.ResourceID != "":
		return // another token also has the resource ID
	}
	n.names, n.end = names, end
}

// identitiesOf returns the identities that the selector names, as far as the names are known.
// There should be at most one.
func (m *memory) identitiesOf(selector azure.Selector, now time.Time) []azure.ClientID {
	var found []azure.ClientID
	for _, id := range m.identities {
		if n := m.named[id]; n.known(now) && n.names.Has(selector) {
			found = append(found, id)
		}
	}
	return found
}

// unnamed returns the identities whose names are not known: first the one that the selector
// named while its names were known, then the others in the order of the configuration.
func (m *memory) unnamed(selector azure.Selector, now time.Time) []azure.ClientID {
	var ids []azure.ClientID
	for _, id := range m.identities {
		switch n := m.named[id]; {
		case n.known(now):
		case n.names.Has(selector):
			ids = slices.Insert(ids, 0, id)
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

// look decides what to do to know the names of id: to wait for an exchange, or to read the
// token of the decision. If others is true, it waits for an exchange for any resource that is
// running, but not for long. The caller does not use the token, so it does not count as used:
// it is not refreshed.
func (m *memory) look(id azure.ClientID, resource azure.Resource, others bool, now time.Time) decision {
	k := key{id, resource}
	if e := m.valid(k, now); e != nil {
		return decision{action: serve, token: e.tokenAt(now)}
	}
	r := m.runningOf(id, now)
	if r == nil || !others {
		return m.decideWithout(k, now)
	}
	d := decision{action: wait, run: r, waiter: m.enter(r), fallback: true}
	if d.waiter == nil {
		d.action, d.err = refuse, overloaded()
	}
	return d
}

// runningOf returns a running exchange of id that callers may still wait for, nil if there is
// none.
func (m *memory) runningOf(id azure.ClientID, now time.Time) *run {
	for k, r := range m.running {
		if k.clientID == id && now.Before(r.began.Add(refreshWait)) {
			return r
		}
	}
	return nil
}

// tokenOfSelector is Token for a request with a selector.
func (s *Service) tokenOfSelector(ctx context.Context, r Request) (Result, error) {
	began := time.Now()
	id, failed := s.identify(ctx, r)
	if failed != nil {
		return Result{}, failed
	}
	result, err := s.Token(ctx, Request{ClientID: id, Resource: r.Resource, Fresh: r.Fresh})
	if err != nil {
		return Result{}, err
	}
	// This may be another token than the one whose claims named the identity.
	if result.Token.Names().Contradicts(r.Selector) {
		return Result{}, unknownSelector(fmt.Sprintf("a token of client ID %s has it, and another one has another value", id))
	}
	result.ClientID = id
	if !result.Token.NotBefore.Before(began) {
		result.Source = SourceEntra // identify has made the exchange for this request
	}
	return result, nil
}

// identify returns the configured identity that the selector of a request names. It waits no
// longer than for one exchange.
func (s *Service) identify(caller context.Context, r Request) (azure.ClientID, *exchange.Error) {
	ctx, cancel := context.WithTimeout(caller, exchangeTimeout+recordTime)
	defer cancel()
	found, unnamed := s.known(r.Selector)
	var failed *exchange.Error
	for i, id := range unnamed {
		if len(found) > 0 {
			break
		}
		if i == 1 {
			s.startLooks(unnamed[1:], r.Resource) // not with the first, which is the likely one
		}
		err := s.lookAt(ctx, id, r.Resource)
		if err != nil && errors.Is(err, ErrOverloaded) {
			return "", err // the next look would take the place of another caller
		}
		failed = moreTransient(failed, err)
		found, _ = s.known(r.Selector)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", unknownSelector(fmt.Sprintf("the tokens of %d configured identities have it", len(found)))
	case ctx.Err() != nil:
		return "", outOfTime(caller)
	case failed != nil && failed.Kind != exchange.UnknownIdentity && failed.Kind != exchange.UnauthorizedClient:
		return "", failed // an identity that could not be looked at may be the named one
	}
	return "", unknownSelector(s.whyUnknown())
}

// whyUnknown returns, for the log, why no identity has a name.
func (s *Service) whyUnknown() string {
	_, unnamed := s.known("")
	text := fmt.Sprintf("it is not configured, and not in the tokens of the %d configured client IDs", len(s.memory.identities))
	if len(unnamed) > 0 {
		text += fmt.Sprintf(", of which %d have no readable token, such as %s", len(unnamed), unnamed[0])
	}
	return text + "; see --identity"
}

// moreTransient returns the error after which a retry is more likely to succeed.
func moreTransient(a, b *exchange.Error) *exchange.Error {
	if a == nil || b != nil && a.Kind.Permanent() {
		return b
	}
	return a
}

func unknownSelector(detail string) *exchange.Error {
	return &exchange.Error{Kind: exchange.UnknownIdentity, Detail: detail, Cause: ErrUnknownSelector}
}

// known returns the identities that the selector names. If there are none, it returns the
// identities whose names are not known.
func (s *Service) known(selector azure.Selector) (found, unnamed []azure.ClientID) {
	now := time.Now()
	s.mu.Lock()
	found = s.memory.identitiesOf(selector, now)
	if len(found) == 0 {
		unnamed = s.memory.unnamed(selector, now)
	}
	isNew := len(found) == 1 && s.memory.noteLogged(found[0], selector)
	s.mu.Unlock()
	if isNew {
		s.observer.learned(selector)
		s.logLearned(found[0], selector)
	}
	return found, unnamed
}

// noteLogged notes that a request has used a name of id, and reports whether it is the first.
func (m *memory) noteLogged(id azure.ClientID, selector azure.Selector) bool {
	n := m.named[id]
	logged, name := &n.logged.ObjectID, n.names.ObjectID
	if selector.IsResourceID() {
		logged, name = &n.logged.ResourceID, n.names.ResourceID
	}
	isNew := *logged != name
	*logged = name // and not selector, which may be part of a much longer request in memory
	return isNew
}

func (s *Service) logLearned(id azure.ClientID, selector azure.Selector) {
	if selector.IsResourceID() {
		s.log.Info("learned resource ID", zap.String("resource_id", string(selector)), zap.String("client_id", string(id)))
		return
	}
	s.log.Info("learned object ID", zap.String("object_id", string(selector)), zap.String("client_id", string(id)))
}

// startLooks starts the exchanges that lookAt would wait for, so that they run at the same
// time.
func (s *Service) startLooks(ids []azure.ClientID, resource azure.Resource) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.memory
	for _, id := range ids {
		k := key{id, resource}
		if m.named[id].known(now) || m.valid(k, now) != nil || m.runningOf(id, now) != nil {
			continue
		}
		if r, start, _ := m.join(k, m.budgetWithout(k), now); start { // lookAt returns the error
			s.start(r)
		}
	}
}

// lookAt waits until the names of id are known, or returns why they are not. It returns nil
// also for a token without names.
func (s *Service) lookAt(ctx context.Context, id azure.ClientID, resource azure.Resource) *exchange.Error {
	for _, others := range [...]bool{true, false} {
		now := time.Now()
		s.mu.Lock()
		d, known := decision{}, s.memory.named[id].known(now)
		if !known {
			d = s.memory.look(id, resource, others, now)
		}
		if d.start {
			s.start(d.run)
		}
		s.mu.Unlock()
		switch {
		case known:
			return nil
		case d.action == serve:
			s.readNames(id, d.token)
			return nil
		case d.action == refuse:
			s.observer.refused(d.err)
			return d.err
		}
		if _, err := s.wait(ctx, d); !d.fallback {
			return asOptional(err)
		}
		if displaced(d.waiter) {
			err := overloaded()
			s.observer.refused(err)
			return err
		}
	}
	return nil
}

// readNames notes the names of a cached token. They are not known any more if an earlier token
// with other names has replaced them and has ended.
func (s *Service) readNames(id azure.ClientID, token exchange.Token) {
	names, now := token.Names(), time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory.noteNames(id, names, endOf(token, now), now)
}

// asOptional is asError for an error that may be nil.
func asOptional(err error) *exchange.Error {
	if err == nil {
		return nil
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return failed
}
