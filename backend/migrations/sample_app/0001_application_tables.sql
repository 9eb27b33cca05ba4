-- The application's six tables, for demo, tests and benchmarks. In production they are the application's, never ours.
-- Every timestamp is without time zone and holds UTC. Every id is a varchar that holds a UUID.

CREATE TABLE public.users (
    id               varchar(36) PRIMARY KEY,
    email            varchar(320) NOT NULL UNIQUE,
    normalized_email varchar(320) NOT NULL,
    password_hash    text,
    created_at       timestamp    NOT NULL,
    updated_at       timestamp    NOT NULL
);

CREATE TABLE public.quiz_responses (
    id               varchar(36) PRIMARY KEY,
    user_id          varchar(36)  REFERENCES public.users (id) ON DELETE CASCADE,
    email            varchar(320) NOT NULL,
    normalized_email varchar(320) NOT NULL,
    quiz_data        jsonb        NOT NULL,
    calorie_target   integer      NOT NULL,
    created_at       timestamp    NOT NULL,
    updated_at       timestamp,
    payment_id       varchar(64),
    pdf_delivered_at timestamp
);
CREATE INDEX quiz_responses_created_at_idx ON public.quiz_responses (created_at);
CREATE INDEX quiz_responses_normalized_email_idx ON public.quiz_responses (normalized_email);
CREATE INDEX quiz_responses_pdf_delivered_at_idx ON public.quiz_responses (pdf_delivered_at);
CREATE INDEX quiz_responses_user_id_idx ON public.quiz_responses (user_id);

CREATE TABLE public.meal_plans (
    id                  varchar(36) PRIMARY KEY,
    payment_id          varchar(64)  NOT NULL UNIQUE,
    email               varchar(320) NOT NULL,
    normalized_email    varchar(320) NOT NULL,
    pdf_blob_path       text,
    pdf_deleted_at      timestamp,
    calorie_target      integer      NOT NULL,
    preferences_summary jsonb        NOT NULL,
    ai_model            varchar(64)  NOT NULL,
    status              varchar(16)  NOT NULL CHECK (status IN ('processing', 'completed', 'failed', 'refunded')),
    refund_count        integer      NOT NULL DEFAULT 0,
    created_at          timestamp    NOT NULL,
    email_sent_at       timestamp
);
CREATE INDEX meal_plans_created_at_idx ON public.meal_plans (created_at);
CREATE INDEX meal_plans_normalized_email_idx ON public.meal_plans (normalized_email);

CREATE TABLE public.payment_transactions (
    id                  varchar(36) PRIMARY KEY,
    payment_id          varchar(64)   NOT NULL UNIQUE,
    meal_plan_id        varchar(36)   REFERENCES public.meal_plans (id),
    amount              numeric(10,2) NOT NULL,
    currency            varchar(3)    NOT NULL,
    payment_method      varchar(32)   NOT NULL,
    payment_status      varchar(16)   NOT NULL CHECK (payment_status IN ('succeeded', 'refunded', 'chargeback')),
    paddle_created_at   timestamp     NOT NULL,
    webhook_received_at timestamp     NOT NULL,
    customer_email      varchar(320)  NOT NULL,
    normalized_email    varchar(320)  NOT NULL,
    created_at          timestamp     NOT NULL,
    updated_at          timestamp     NOT NULL
);
CREATE INDEX payment_transactions_meal_plan_id_idx ON public.payment_transactions (meal_plan_id);
CREATE INDEX payment_transactions_normalized_email_idx ON public.payment_transactions (normalized_email);
CREATE INDEX payment_transactions_created_at_idx ON public.payment_transactions (created_at);

CREATE TABLE public.magic_link_tokens (
    id               varchar(36) PRIMARY KEY,
    token_hash       varchar(64)  NOT NULL UNIQUE,  -- SHA-256, in hex
    email            varchar(320) NOT NULL,
    normalized_email varchar(320) NOT NULL,
    created_at       timestamp    NOT NULL,
    expires_at       timestamp    NOT NULL,
    used_at          timestamp,
    generation_ip    varchar(45)  NOT NULL,
    usage_ip         varchar(45)
);
CREATE INDEX magic_link_tokens_expires_at_idx ON public.magic_link_tokens (expires_at);
CREATE INDEX magic_link_tokens_normalized_email_idx ON public.magic_link_tokens (normalized_email);

CREATE TABLE public.email_blacklist (
    id               varchar(36) PRIMARY KEY,
    normalized_email varchar(320) NOT NULL UNIQUE,
    reason           varchar(32)  NOT NULL,
    is_permanent     boolean      NOT NULL DEFAULT false,
    created_at       timestamp    NOT NULL,
    expires_at       timestamp    NOT NULL          -- says nothing while is_permanent
);
CREATE INDEX email_blacklist_expires_at_idx ON public.email_blacklist (expires_at);
