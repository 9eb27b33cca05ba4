-- The application's eight tables, as they are deployed: for demo, tests and benchmarks. In production they are the
-- application's, never ours.
-- Ids are varchar without a length and hold a UUID. Timestamps are without time zone and hold UTC, but for one column.
-- The indexes are those that production has. What a policy needs besides, `migrate.py --indexes` prints.

CREATE TYPE public.payment_status_type AS ENUM ('succeeded', 'refunded', 'chargeback');
CREATE TYPE public.issue_type AS ENUM
    ('missing_quiz_data', 'ai_validation_failed', 'email_delivery_failed', 'manual_refund_required');

CREATE TABLE public.users (
    id               varchar      PRIMARY KEY,
    email            varchar(255) NOT NULL UNIQUE,
    normalized_email varchar(255) NOT NULL,
    password_hash    varchar(255),
    created_at       timestamp    NOT NULL,
    updated_at       timestamp    NOT NULL
);
CREATE INDEX users_normalized_email_idx ON public.users (normalized_email);

CREATE TABLE public.quiz_responses (
    id               varchar      PRIMARY KEY,
    user_id          varchar      REFERENCES public.users (id) ON DELETE CASCADE,
    email            varchar(255) NOT NULL,
    normalized_email varchar(255) NOT NULL,
    quiz_data        jsonb        NOT NULL,
    calorie_target   integer      NOT NULL,
    created_at       timestamp    NOT NULL,
    updated_at       timestamp,
    payment_id       varchar(255),
    pdf_delivered_at timestamp                      -- the application does not set it: see meal_plans.email_sent_at
);
CREATE INDEX quiz_responses_normalized_email_idx ON public.quiz_responses (normalized_email);
CREATE INDEX quiz_responses_created_at_idx ON public.quiz_responses (created_at);
CREATE INDEX quiz_responses_pdf_delivered_at_idx ON public.quiz_responses (pdf_delivered_at);

CREATE TABLE public.meal_plans (
    id                  varchar      PRIMARY KEY,
    payment_id          varchar(255) NOT NULL UNIQUE,
    email               varchar(255) NOT NULL,
    normalized_email    varchar(255) NOT NULL,
    pdf_blob_path       text         NOT NULL,      -- the PDF's whole URL; '' before its upload and after its deletion
    calorie_target      integer      NOT NULL,
    preferences_summary jsonb        NOT NULL,
    ai_model            varchar(50)  NOT NULL,
    status              varchar(50)  NOT NULL,      -- processing, completed, failed, refunded
    refund_count        integer      NOT NULL DEFAULT 0,
    created_at          timestamp    NOT NULL,
    email_sent_at       timestamp
);
CREATE INDEX meal_plans_normalized_email_idx ON public.meal_plans (normalized_email);
CREATE INDEX meal_plans_created_at_idx ON public.meal_plans (created_at);

CREATE TABLE public.payment_transactions (
    id                  varchar                    PRIMARY KEY,
    payment_id          varchar(255)               NOT NULL UNIQUE,
    meal_plan_id        varchar                    REFERENCES public.meal_plans (id),
    amount              numeric(10,2)              NOT NULL,
    currency            varchar(3)                 NOT NULL,
    payment_method      varchar(50)                NOT NULL,
    payment_status      public.payment_status_type NOT NULL,
    paddle_created_at   timestamp                  NOT NULL,
    webhook_received_at timestamp                  NOT NULL,
    customer_email      varchar(255)               NOT NULL,
    normalized_email    varchar(255)               NOT NULL,
    created_at          timestamp                  NOT NULL,
    updated_at          timestamp                  NOT NULL
);
CREATE INDEX payment_transactions_normalized_email_idx ON public.payment_transactions (normalized_email);
CREATE INDEX payment_transactions_paddle_created_at_idx ON public.payment_transactions (paddle_created_at);
CREATE INDEX payment_transactions_payment_status_idx ON public.payment_transactions (payment_status);

CREATE TABLE public.magic_link_tokens (
    id               varchar      PRIMARY KEY,
    token_hash       varchar(64)  NOT NULL UNIQUE,  -- SHA-256, in hex
    email            varchar(255) NOT NULL,
    normalized_email varchar(255) NOT NULL,
    created_at       timestamp    NOT NULL,
    expires_at       timestamp    NOT NULL,
    used_at          timestamp,
    generation_ip    varchar(45),
    usage_ip         varchar(45)
);
CREATE INDEX magic_link_tokens_expires_at_idx ON public.magic_link_tokens (expires_at);
CREATE INDEX magic_link_tokens_normalized_email_idx ON public.magic_link_tokens (normalized_email);

CREATE TABLE public.email_blacklist (
    id               varchar      PRIMARY KEY,
    normalized_email varchar(255) NOT NULL UNIQUE,
    reason           varchar(50)  NOT NULL,         -- chargeback, abuse, …
    created_at       timestamp    NOT NULL,
    expires_at       timestamp    NOT NULL          -- infinity, or a year from 9000 on: a ban without end
);
CREATE INDEX email_blacklist_expires_at_idx ON public.email_blacklist (expires_at);

CREATE TABLE public.manual_resolution (
    id               varchar           PRIMARY KEY,
    payment_id       varchar(255)      NOT NULL,
    user_email       varchar(255)      NOT NULL,
    normalized_email varchar(255)      NOT NULL,
    issue_type       public.issue_type NOT NULL,
    status           varchar(50)       NOT NULL,
    sla_deadline     timestamp         NOT NULL,
    created_at       timestamp         NOT NULL,
    resolved_at      timestamp,
    assigned_to      varchar(255),
    resolution_notes text
);
CREATE INDEX manual_resolution_sla_deadline_idx ON public.manual_resolution (sla_deadline);
CREATE INDEX manual_resolution_status_idx ON public.manual_resolution (status);
CREATE INDEX manual_resolution_created_at_idx ON public.manual_resolution (created_at);

CREATE TABLE public.refund_counts (
    normalized_email varchar     PRIMARY KEY,
    refund_count     integer     NOT NULL,
    updated_at       timestamptz NOT NULL
);
