-- Which rows name a blob, in whatever spelling? Asked for each one that is about to go.
CREATE INDEX meal_plans_blob_key_idx ON public.meal_plans (ops.blob_key(pdf_blob_path));
