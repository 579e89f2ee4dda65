"""The smoke selection: the most important laws of each room, in less than a minute on two busy cores."""

SMOKE = {
    "config": [
        "test_config.py::test_the_number_of_latents_is_given_or_derived_from_the_width",
        "test_config.py::test_a_configuration_is_plain_data_that_makes_itself_again",
    ],
    "moved": ["test_moved.py::test_a_module_that_moved_says_in_one_line_where_it_is"],
    "storage": ["storage/test_lock.py::test_two_writers_of_one_process_are_two"],
    "ops": [
        "ops/test_ops.py::test_topk_is_exact",
        "ops/test_ops.py::test_decode_gather_dot_and_segment_sums_equal_their_twins",
        "ops/test_ops.py::test_gradients_through_encode_equal_autograd",
        "ops/test_native.py::test_momentum_equals_its_twin",
    ],
    "dictionary": [
        "dictionary/test_autoencoder.py::test_any_leading_shape_gives_the_published_formula",
        "dictionary/test_gradients.py::test_every_gradient_equals_the_oracle",
        "dictionary/test_family.py::test_training_s_code_is_inference_s_code",
        "dictionary/test_family.py::test_what_is_saved_is_what_is_loaded",
        "dictionary/test_losses.py::test_two_parts_merge_to_the_whole",
    ],
    "formats": [
        "formats/test_eleuther.py::test_save_and_load_changes_nothing",
        "formats/test_formats.py::test_files_of_each_library_are_recognised_and_compute_the_published_formula",
        "hostile/test_hostile.py::test_a_link_out_of_an_autoencoder_is_refused_and_one_inside_is_not",
    ],
    "lm": [
        "lm/test_hookpoints.py::test_every_block_is_the_default_with_and_without_head_and_weights",
        "lm/test_harvest.py::test_stopping_early_equals_the_hidden_states_of_the_whole_model",
        "lm/test_graft.py::test_grafting_the_identity_changes_no_logit_bit_for_bit[gpt_neox-dtype0]",
    ],
    "data": [
        "data/test_token_batches.py::test_held_out_and_trained_sequences_are_disjoint_and_together_everything",
        "data/test_token_batches.py::test_stopping_and_resuming_equals_not_stopping",
        "data/test_memmap.py::test_sequences_are_the_file_cut_to_length_without_its_tail",
    ],
    "activations": [
        "activations/test_shuffle.py::test_every_token_comes_out_exactly_once_in_as_many_parts",
        "activations/test_cache_files.py::test_every_token_is_there_once_and_the_hookpoints_belong_together",
        "activations/test_cache.py::test_a_cache_in_a_live_runs_order_trains_the_same_autoencoders_to_the_bit[plain]",
    ],
    "runs": [
        "runs/test_checkpoint.py::test_save_and_load_changes_nothing",
        "runs/test_checkpoint.py::test_a_crash_while_saving_leaves_no_step_and_the_one_before[3]",
        "runs/test_resume.py::test_stopping_at_any_step_and_resuming_equals_not_stopping[5]",
        "runs/test_saver.py::test_what_is_written_is_the_state_at_the_call_whatever_training_does_meanwhile",
    ],
    "parallel": [
        "parallel/test_placement.py::test_activations_go_to_who_trains_on_them_and_to_nobody_else",
        "test_fingerprints.py::test_a_run_ends_with_the_weights_that_are_on_record[2 ranks]",
    ],
    "evaluation": [
        "evaluation/test_evaluation.py::test_every_metric_is_its_formula_over_all_tokens[gpt_neox]",
        "evaluation/test_evaluation.py::test_sums_merge_exactly_however_the_sequences_are_split",
    ],
    "browser": [
        "browser/test_index.py::test_the_events_are_the_code_of_every_token_that_counts",
        "browser/test_server.py::test_a_latents_page_is_what_the_index_says",
    ],
    "report": ["runs/test_log.py::test_the_report_says_everything_and_where_it_is"],
    "training": [
        "training/test_learner.py::test_a_step_is_adam_on_the_oracles_gradient_with_projection_and_unit_norm",
        "training/test_trainer.py::test_every_family_trains_every_layer_by_default_and_the_fvu_falls[gpt2-False]",
        "training/test_learner.py::test_how_a_step_is_split_changes_memory_and_not_the_result",
        "training/test_trainer.py::test_with_one_process_no_gradient_of_a_step_is_ever_a_whole_matrix",
        "test_fingerprints.py::test_a_run_ends_with_the_weights_that_are_on_record[default]",
    ],
    "commands": [
        "commands/test_cli.py::test_the_list_of_options_is_frozen",
        "commands/test_cli.py::test_the_seeds_flags_parse_as_written_and_with_dashes",
        "evaluation/test_eval_command.py::test_a_run_is_measured_on_exactly_the_sequences_that_it_held_out",
    ],
    "__init__": ["test_guards.py::test_the_package_says_its_version_and_that_it_is_typed"],
    "__main__": [
        "commands/test_cli.py::test_bad_input_is_one_line_and_status_2_and_writes_nothing[./nowhere text.jsonl]"
    ],
}
"""By room of `sae`: tests under tests/, a case of them in brackets."""
