//! The KVDB's behaviour, as its client and `etcdctl` see it. Every test of `suite!` runs on the embedded server, and again on a
//! real etcd: the program `etcd` if it is installed, or the server at `KEELBLOCK_TEST_ETCD` (HOST:PORT).

mod away;
mod backend;
mod durability;
mod etcdctl;
mod kv;
mod lease;
mod model;
mod relay;
mod secure;
mod txn;
mod watch;

/// Makes a module of tests per backend from functions that take one.
macro_rules! suite {
    ($($(#[$attribute:meta])* $module:ident :: $name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let mut backend = crate::backend::Backend::embedded().await;
                crate::$module::$name(&mut backend).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                match crate::backend::Backend::etcd().await {
                    Some(mut backend) => crate::$module::$name(&mut backend).await,
                    None => eprintln!("not run: there is no etcd here"),
                }
            })*
        }
    };
}

suite! {
    kv::revisions_and_versions_count_changes,
    kv::ranges_sort_limit_and_filter,
    kv::old_revisions_stay_readable_until_compaction,
    kv::deletions_end_a_key_and_a_put_begins_it_anew,
    txn::transactions_are_all_or_nothing,
    txn::nested_transactions_compare_before_they_change,
    txn::a_key_changes_once_per_transaction,
    kv::refusals_name_the_reason_and_change_nothing,
    txn::racing_swaps_have_one_winner_each,
    kv::lists_page_through_one_revision,
    txn::ignore_value_and_lease_keep_them,
    watch::changes_arrive_in_order_with_what_was_before,
    watch::a_watch_from_the_past_catches_up,
    watch::a_compacted_watch_says_so_and_a_new_list_goes_on,
    watch::many_watches_share_a_stream,
    watch::filters_progress_and_cancel,
    watch::a_watcher_that_is_far_behind_gets_everything,
    lease::keys_go_when_their_lease_ends,
    lease::a_lease_that_is_kept_alive_stays,
    lease::an_expired_lease_deletes_and_watchers_hear_it,
    lease::a_key_that_changes_its_lease_follows_the_new_one,
    model::random_histories_match_a_model,
    away::a_watch_that_was_cut_misses_nothing,
    away::a_restart_keeps_keys_watches_and_leases,
    away::leases_outlive_a_short_absence_and_no_long_one,
    away::history_that_is_compacted_during_an_absence_is_read_anew,
    away::who_waits_for_a_slow_kvdb_is_told_for_what,
    away::another_server_is_used_when_one_is_away,
}
