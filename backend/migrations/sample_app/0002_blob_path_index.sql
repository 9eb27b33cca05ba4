-- Is a blob still named by another row? Asked for each one that is about to go.
CREATE INDEX meal_plans_pdf_blob_path_idx ON public.meal_plans (pdf_blob_path) WHERE pdf_blob_path IS NOT NULL;
