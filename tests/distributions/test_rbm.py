"""The RBM: exact probabilities, Gibbs sampling, chains, log Z and its gradient."""

import numpy as np
import pytest
import tensorflow as tf

from vaezoo import sampling
from vaezoo.distributions import annealing, relaxed_bernoulli
from vaezoo.distributions.rbm import RBM


def parameters(num_left, num_right, scale=1.0, seed=0):
    generator = np.random.default_rng(seed)
    shapes = [(num_left, num_right), (num_left,), (num_right,)]
    return [
        tf.constant(generator.normal(scale=scale, size=shape), tf.float32)
        for shape in shapes
    ]


def every_vector(size):
    return (np.arange(2**size)[:, None] >> np.arange(size) & 1).astype(np.float32)


def known(rbm):
    """The same RBM, whose log Z is known."""
    return RBM(
        *(rbm.weights, rbm.left_bias, rbm.right_bias),
        log_z=tf.cast(rbm.exact_log_z(), tf.float32),
        log_z_known=True,
    )


def seeds(num, seed=0):
    return tf.constant(sampling.row_seeds(seed, num))


@pytest.fixture(scope="module")
def rbm():
    return RBM(*parameters(4, 3))


@pytest.fixture(scope="module")
def draw(rbm):
    return tf.function(
        lambda seeds, num, temperature: rbm.gibbs(
            seeds, num_updates=num, temperature=temperature
        )
    )


@pytest.mark.parametrize("sizes", [(4, 3), (3, 5), (14, 2)])
def test_probabilities_sum_to_1(sizes):
    rbm = known(RBM(*parameters(*sizes)))
    log_probs = rbm.log_prob(every_vector(sum(sizes)))
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1.0, rtol=1e-5)
    assert rbm.log_prob(every_vector(sum(sizes))[5]).shape == ()


def test_the_energy_is_that_of_the_definition(rbm):
    values = np.random.default_rng(1).random((5, 7)).astype(np.float32)
    left, right = values[:, :4], values[:, 4:]
    expected = -left @ rbm.left_bias.numpy() - right @ rbm.right_bias.numpy()
    expected -= np.einsum("nl,lr,nr->n", left, rbm.weights, right)
    np.testing.assert_allclose(rbm.energy(values), expected, rtol=1e-5)


def test_log_z_by_the_smaller_side_alone_is_that_of_all_vectors():
    for sizes in [(4, 3), (2, 9)]:
        rbm = RBM(*parameters(*sizes))
        energies = tf.cast(rbm.energy(every_vector(sum(sizes))), tf.float64)
        expected = tf.reduce_logsumexp(-energies)
        np.testing.assert_allclose(rbm.exact_log_z(), expected, rtol=1e-6)
    # In several parts, with a closed form: independent units.
    rbm = RBM(tf.zeros([13, 14]), tf.zeros(13), tf.ones(14))
    expected = 13 * np.log(2) + 14 * np.log1p(np.e)
    np.testing.assert_allclose(rbm.exact_log_z(), expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gibbs_sampling_draws_the_exact_probabilities(rbm, draw, temperature):
    """20,000 chains of 30 updates; 4.5 standard errors for 128 vectors, seeded."""
    num = 20_000
    values = draw(seeds(num), tf.constant(30), tf.fill([num], temperature)).numpy()
    assert set(np.unique(values)) == {0.0, 1.0}
    counts = np.bincount((values @ 2 ** np.arange(7)).astype(int), minlength=128)
    log_weights = -rbm.energy(every_vector(7)).numpy() / temperature
    expected = np.exp(log_weights) / np.exp(log_weights).sum()
    errors = np.sqrt(expected * (1 - expected) / num)
    assert np.all(np.abs(counts / num - expected) < 4.5 * errors)


def test_a_chain_depends_on_its_seed_alone_and_passes_through_shorter_ones(rbm, draw):
    keys, ones = seeds(6), tf.ones([6])
    whole = draw(keys, tf.constant(20), ones)
    parts = [draw(keys[i : i + 1], tf.constant(20), ones[:1]).numpy() for i in range(6)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    # Without a temperature, eagerly, and with a count that Python knows.
    np.testing.assert_array_equal(whole, rbm.gibbs(keys, num_updates=20))
    # Cold rows differ from the others, and change none of them.
    mixed = draw(keys, tf.constant(20), tf.constant([1.0, 0.01, 1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(whole[2:], mixed[2:])
    # Noise is drawn in blocks of 16 updates; another block is other noise: starting
    # again from where a chain was after one does not lead where the chain went.
    many = tf.tile(keys, [4]) + tf.range(24, dtype=tf.int64)
    left, _ = rbm.split(draw(many, tf.constant(16), tf.ones([24])))
    again = rbm.gibbs(many, num_updates=4, left=left)
    assert np.any(again != draw(many, tf.constant(20), tf.ones([24])))
    assert draw(keys[:0], tf.constant(3), ones[:0]).shape == (0, 7)


def test_samples_are_draws(rbm):
    values = tf.function(lambda: rbm.sample(5, seed=1))()
    assert values.shape == (5, 7)
    assert set(np.unique(values)) <= {0.0, 1.0}


def test_chains_equilibrate_and_keep_their_dtype(rbm):
    """Means of 20,000 chains after 30 sweeps: within 4.5 standard errors, seeded."""
    chains = tf.cast(rbm.first_chains(seeds(20_000)), tf.uint8)
    update = tf.function(
        lambda chains, seed: rbm.update_chains(chains, seed, num_sweeps=10)
    )
    for seed in range(3):
        chains = update(chains, tf.constant(seed, tf.int64))
    assert chains.dtype == tf.uint8
    vectors = every_vector(7)
    weights = np.exp(-rbm.energy(vectors))
    expected = (weights[:, None] * vectors).sum(0)[:4] / weights.sum()
    found = chains.numpy().astype(float).mean(0)
    assert np.all(np.abs(found - expected) < 4.5 * np.sqrt(0.25 / 20_000))
    same = update(chains, tf.constant(7, tf.int64))
    np.testing.assert_array_equal(same, update(chains, tf.constant(7, tf.int64)))
    assert np.any(same != update(chains, tf.constant(8, tf.int64)))


def test_the_surrogate_has_the_gradient_of_log_z():
    """Against the exact one: within 5 standard errors of a bit, of 20,000 chains."""
    variables = [tf.Variable(value) for value in parameters(4, 3)]
    rbm = RBM(*variables)
    left, _ = rbm.split(tf.function(lambda: rbm.gibbs(seeds(20_000), num_updates=30))())
    with tf.GradientTape() as tape:
        surrogate = rbm.log_z_surrogate(left)
    found = tape.gradient(surrogate, variables)
    with tf.GradientTape() as tape:
        exact = rbm.exact_log_z()
    for a, b in zip(found, tape.gradient(exact, variables), strict=True):
        np.testing.assert_allclose(a, b, atol=5 * np.sqrt(0.25 / 20_000))


def test_kl_in_closed_form_is_the_enumerated_one(rbm):
    rbm = known(rbm)
    logits = np.random.default_rng(2).normal(size=(3, 7)).astype(np.float32)
    vectors = every_vector(7)
    log_q = vectors @ logits.T - np.log1p(np.exp(logits)).sum(1)
    log_p = rbm.log_prob(vectors).numpy()[:, None]
    expected = (np.exp(log_q) * (log_q - log_p)).sum(0)
    np.testing.assert_allclose(rbm.kl_from(logits), expected, rtol=1e-4)
    # Of the left side drawn: its mean over all draws is the same.
    left = every_vector(4)
    for row, expected_row in zip(logits, expected, strict=True):
        kl = rbm.kl_from(np.tile(row, (16, 1)), left=left).numpy()
        q_left = np.exp(left @ row[:4] - np.log1p(np.exp(row[:4])).sum())
        np.testing.assert_allclose((q_left * kl).sum(), expected_row, rtol=1e-4)


def test_the_elbo_is_below_the_exact_evidence():
    """4 bits and a likelihood of one binary observation: enumerated, no noise."""
    rbm = known(RBM(*parameters(2, 2)))
    vectors = every_vector(4)
    log_likelihood = np.log(1 / (1 + np.exp(-(vectors @ [1.0, -2.0, 0.5, 3.0] - 1))))
    joint = log_likelihood + rbm.log_prob(vectors).numpy()
    evidence = np.log(np.exp(joint).sum())
    gaps = []
    for row in np.random.default_rng(3).normal(size=(20, 4)).astype(np.float32) * 2:
        q = np.exp(vectors @ row - np.log1p(np.exp(row)).sum())
        elbo = (q * log_likelihood).sum() - rbm.kl_from(row[None]).numpy()[0]
        posterior = joint - evidence
        gap = (q * (np.log(q) - posterior)).sum()  # KL(q || p(z | x))
        np.testing.assert_allclose(evidence - elbo, gap, atol=1e-4)
        gaps.append(gap)
    assert min(gaps) > 0.01


class TestLogZUnknown:
    def test_it_is_refused_eagerly(self, rbm):
        for use in (rbm.log_prob, rbm.kl_from):
            with pytest.raises(ValueError, match="log_z.*Received.*forward_log_z"):
                use(tf.zeros([1, 7]))

    def test_it_is_refused_in_a_graph(self):
        is_known = tf.Variable(False)
        rbm = RBM(*parameters(4, 3), log_z=tf.Variable(3.0), log_z_known=is_known)
        log_prob = tf.function(rbm.log_prob)
        with pytest.raises(tf.errors.InvalidArgumentError, match="forward_log_z"):
            log_prob(tf.zeros([1, 7]))
        is_known.assign(True)
        np.testing.assert_allclose(log_prob(tf.zeros([1, 7])), [-3.0])


def test_relaxed_values_have_no_probability(rbm):
    rbm = known(rbm)
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        rbm.log_prob(tf.fill([2, 7], 0.5))
    with pytest.raises(tf.errors.InvalidArgumentError, match="exactly 0 or 1"):
        tf.function(rbm.log_prob)(tf.fill([2, 7], 0.5))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_side_without_units_is_refused(sizes):
    with pytest.raises(ValueError, match=r"at least one unit a side.*\(3,\)"):
        RBM(*parameters(*sizes))


def test_shapes_that_do_not_fit_are_refused():
    weights, left_bias, right_bias = parameters(4, 3)
    with pytest.raises(ValueError, match="right_bias"):
        RBM(weights, right_bias, left_bias)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_counts_of_updates_are_refused(rbm, count):
    with pytest.raises(ValueError, match="num_updates.*positive integer"):
        rbm.gibbs(seeds(2), num_updates=count)
    with pytest.raises(ValueError, match="num_sweeps.*positive integer"):
        rbm.update_chains(tf.zeros([2, 4]), 0, num_sweeps=count)


def test_a_count_that_a_graph_is_given_is_refused(draw):
    with pytest.raises(tf.errors.InvalidArgumentError, match="`num_updates` must be"):
        draw(seeds(2), tf.constant(0), tf.ones([2]))


def test_a_large_side_is_not_enumerated():
    with pytest.raises(ValueError, match="at most 20.*21 and 22"):
        RBM(tf.zeros([21, 22]), tf.zeros(21), tf.zeros(22)).exact_log_z()


@pytest.fixture(scope="module")
def larger():
    return RBM(*parameters(10, 8))


class TestAnnealing:
    def test_both_ways_are_near_the_exact_log_z(self, larger):
        """0.05 nats, of 1,000 chains and 1,000 temperatures (T12); seeded."""
        exact = float(larger.exact_log_z())
        bracket = annealing.bracket_log_z(larger, num_updates=200)
        for estimate in (bracket.forward, bracket.reverse):
            assert abs(estimate.value - exact) < 0.05
            assert abs(estimate.value - exact) < 4 * estimate.standard_error
            assert 800 < estimate.effective_sample_size <= 1000
        assert bracket.width == bracket.reverse.value - bracket.forward.value

    def test_few_temperatures_bracket_it_in_the_mean(self, larger):
        """Of 100 runs of 10 chains: biases of more than three standard errors."""
        exact = float(larger.exact_log_z())
        brackets = [
            annealing.bracket_log_z(
                larger, num_chains=10, num_temperatures=3, num_updates=50, seed=seed
            )
            for seed in range(100)
        ]
        for values, sign in (
            ([bracket.forward.value for bracket in brackets], -1),
            ([bracket.reverse.value for bracket in brackets], 1),
        ):
            bias = sign * (np.array(values) - exact)
            assert bias.mean() > 3 * bias.std() / np.sqrt(len(bias))

    def test_it_does_not_depend_on_chunks(self, larger):
        options = {"num_chains": 7, "num_temperatures": 9, "num_sweeps": 3}
        whole = annealing.bracket_log_z(larger, num_updates=3, **options)
        parts = annealing.bracket_log_z(larger, num_updates=3, chunk=3, **options)
        assert parts.forward.value == pytest.approx(whole.forward.value, abs=1e-4)
        assert parts.reverse.value == pytest.approx(whole.reverse.value, abs=1e-4)

    def test_the_standard_error_is_that_of_repeated_runs(self, larger):
        """Spread of 30 runs of 40 chains, to a factor of 1.5."""
        runs = [
            annealing.forward_log_z(
                larger, num_chains=40, num_temperatures=30, seed=seed
            )
            for seed in range(30)
        ]
        spread = np.std([run.value for run in runs], ddof=1)
        stated = np.mean([run.standard_error for run in runs])
        assert 1 / 1.5 < spread / stated < 1.5

    def test_progress_is_told(self, larger, capfd):
        options = {"num_chains": 4, "num_temperatures": 5, "chunk": 2}
        annealing.forward_log_z(larger, verbose=1, **options)
        assert "20/20 sweeps" in capfd.readouterr().err
        annealing.forward_log_z(larger, **options)
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        "name", ["num_chains", "num_temperatures", "num_sweeps", "chunk"]
    )
    def test_counts_are_refused(self, larger, name):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
            annealing.forward_log_z(larger, **{name: 0})

    def test_draws_are_checked(self, larger):
        with pytest.raises(ValueError, match=r"\[n, 10\].*\(3, 9\)"):
            annealing.reverse_log_z(larger, np.zeros([3, 9]))
        with pytest.raises(ValueError, match="exactly 0 or 1"):
            annealing.reverse_log_z(larger, np.full([3, 10], 0.5))


class TestRelaxation:
    logits = tf.constant([[-2.0, -0.3, 0.0, 1.7]])

    def uniforms(self, num):
        return tf.random.stateless_uniform([num, 4], seed=[0, 1])

    def test_it_is_the_sigmoid_of_logits_and_noise_over_the_temperature(self):
        uniforms = self.uniforms(100)
        noise = np.log(uniforms / (1 - uniforms))
        expected = 1 / (1 + np.exp(-(self.logits + noise) / 0.25))
        found = relaxed_bernoulli.relaxed(self.logits, uniforms, 0.25)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_temperature_to_0_gives_the_discrete_draws(self):
        """Their frequencies are sigmoid(l): 4.5 standard errors of 50,000."""
        uniforms = self.uniforms(50_000)
        discrete = relaxed_bernoulli.discrete(self.logits, uniforms).numpy()
        for temperature in (0.5, 1e-3):
            relaxed = relaxed_bernoulli.relaxed(self.logits, uniforms, temperature)
            np.testing.assert_array_equal(relaxed.numpy() > 0.5, discrete)
        np.testing.assert_allclose(relaxed, discrete, atol=0.5)
        assert np.mean(np.abs(relaxed - discrete)) < 1e-3
        expected = tf.sigmoid(self.logits[0]).numpy()
        assert np.all(np.abs(discrete.mean(0) - expected) < 4.5 * 0.5 / 50_000**0.5)

    def test_the_ends_of_the_noise_are_finite(self):
        uniforms = tf.constant([[0.0, 1 - 2.0**-23, 0.0, 1 - 2.0**-23]])
        logits = tf.Variable([[30.0, -30.0, 0.0, 0.0]])
        with tf.GradientTape() as tape:
            relaxed = relaxed_bernoulli.relaxed(logits, uniforms, 0.1)
        assert np.all(np.isfinite(tape.gradient(relaxed, logits)))
        np.testing.assert_allclose(relaxed, [[1, 0, 0, 1]], atol=1e-6)
        discrete = relaxed_bernoulli.discrete(logits, uniforms)
        np.testing.assert_array_equal(discrete, [[1, 0, 0, 1]])

    def test_gradients_of_log_q_flow_through_the_values_alone(self):
        """Finite differences of the values, at fixed logits inside log q."""
        uniforms, step = self.uniforms(1), 1e-3
        logits = tf.Variable(self.logits)
        with tf.GradientTape() as tape:
            values = relaxed_bernoulli.relaxed(logits, uniforms, 0.25)
            log_q = relaxed_bernoulli.path_log_prob(logits, values)
        found = tape.gradient(log_q, logits).numpy()[0]
        mean, rho = (
            self.logits.numpy()[0].astype(float),
            uniforms.numpy()[0].astype(float),
        )

        def zeta(mean):
            return 1 / (1 + np.exp(-(mean + np.log(rho / (1 - rho))) / 0.25))

        expected = mean * (zeta(mean + step) - zeta(mean - step)) / (2 * step)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        expected = np.sum(zeta(mean) * mean - np.log1p(np.exp(mean)))
        np.testing.assert_allclose(log_q, [expected], rtol=1e-4)

    def test_the_surrogate_of_kl_has_the_gradients_of_its_terms(self):
        variables = [tf.Variable(value) for value in parameters(2, 2)]
        rbm = RBM(*variables)
        chains, uniforms = rbm.first_chains(seeds(9)), self.uniforms(1)
        logits = tf.Variable(self.logits)
        with tf.GradientTape() as tape:
            values = relaxed_bernoulli.relaxed(logits, uniforms, 0.25)
            kl = relaxed_bernoulli.relaxed_kl(logits, values, rbm, chains)
        slope, *found = tape.gradient(kl, [logits, *variables])
        # W: minus the outer product of the relaxed sides, plus that of the chains.
        left, right = values[:, :2], values[:, 2:]
        expected = -tf.transpose(left) @ right
        mean_right = tf.sigmoid(rbm.right_logits(chains))
        expected += tf.transpose(chains) @ mean_right / 9
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)
        # Logits: (l - what the RBM gives the unit) times the slope of the value.
        wanted = self.logits - tf.concat(
            [rbm.left_logits(right), rbm.right_logits(left)], -1
        )
        wanted *= values * (1 - values) / 0.25
        np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-6)

    def test_a_temperature_of_0_is_refused(self):
        with pytest.raises(ValueError, match="temperature.*above 0"):
            relaxed_bernoulli.relaxed(self.logits, self.uniforms(1), 0.0)
